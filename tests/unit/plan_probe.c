/* plan/nvidia and plan/pci: a stand-in for NVIDIA's library, and a PCI tree made by the test. */
#include "test.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "plan/nvidia.h"
#include "plan/pci.h"

static void nvidia(void **state)
{
    (void)state;
    imp_nvml *v;
    imp_error err;
    imp_nvidia_gpu g[4];
    char driver[80];
    assert_int_equal(imp_nvml_open(FAKE_NVML, &v, &err), IMP_OK);
    assert_int_equal(imp_nvml_gpus(v, g, 4, driver), 2);
    assert_string_equal(driver, "999.12.03");
    assert_string_equal(g[0].name, "NVIDIA Imaginary 10");
    assert_string_equal(g[0].pci, "0000:18:00.0");
    assert_true(g[0].major == 9 && g[0].minor == 0 && !g[0].mig && g[1].mig);
    assert_true(g[0].mem_total == 24ull << 30 && g[0].mem_free == 6ull << 30);
    assert_true(g[1].pcie_gen == 4 && g[1].pcie_width == 8 && g[1].pcie_gen_max == 5 && g[1].width_max == 16);
    assert_true(g[0].watt_limit == 350 && g[1].watt_limit == 170);
    assert_int_equal(imp_nvml_gpus(v, g, 1, driver), 1); /* no more than there is room for */
    imp_nvml_close(v);
    assert_int_equal(imp_nvml_open("/nowhere/libnvidia-ml.so.1", &v, &err), IMP_NOT_FOUND);
    assert_null(v);
    assert_int_equal(setenv("FAKE_NVML_BROKEN", "1", 1), 0);
    assert_int_equal(imp_nvml_open(FAKE_NVML, &v, &err), IMP_DEVICE);
    assert_non_null(strstr(err.text, "driver loaded"));
    assert_int_equal(unsetenv("FAKE_NVML_BROKEN"), 0);
    assert_int_equal(imp_nvml_open("libm.so.6", &v, &err), IMP_DEVICE); /* a library, but not that one */
    assert_non_null(strstr(err.text, "nvmlInit_v2"));
}

static void card(const char *root, const char *at, const char *vendor, const char *device, const char *class)
{
    char path[300];
    const char *file[] = {"vendor", "device", "class"}, *text[] = {vendor, device, class};
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s", root, at);
    assert_int_equal(mkdir(path, 0700), 0);
    for (int i = 0; i < 3; i++) {
        if (text[i] == NULL) continue;
        snprintf(path, sizeof path, "%s/bus/pci/devices/%s/%s", root, at, file[i]);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fprintf(f, "%s\n", text[i]);
        fclose(f);
    }
}

static void pci(void **state)
{
    (void)state;
    char root[64] = "/tmp/imp_pci_XXXXXX", path[128];
    assert_non_null(mkdtemp(root));
    const char *folders[] = {"bus", "bus/pci", "bus/pci/devices"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    imp_pci_unit u[16];
    assert_int_equal(imp_pci_read(root, u, 16), 0);
    card(root, "0000:03:00.0", "0x1002", "0x744c", "0x030000"); /* Radeon */
    card(root, "0000:00:02.0", "0x8086", "0x56a0", "0x030000"); /* Arc */
    card(root, "0000:c5:00.1", "0x1022", "0x17f0", "0x118000"); /* XDNA behind another class */
    card(root, "0000:00:0b.0", "0x8086", "0x643e", "0x120000"); /* Lunar Lake's NPU */
    card(root, "0000:01:00.0", "0x10de", "0x2335", "0x030200");
    card(root, "0000:00:1f.0", "0x8086", "0x7a06", "0x060100"); /* a bridge */
    card(root, "0000:02:00.0", "0x1a03", "0x2000", "0x030000"); /* a server's display adapter */
    card(root, "0000:04:00.0", "0x1002", NULL, "0x030000");     /* half read */
    card(root, "0000:05:00.0", "0x1002", "rubbish", "0x030000");
    assert_int_equal(imp_pci_read(root, u, 16), 5);
    static const struct {
        const char *where, *kind, *word, *reason;
    } want[] = {{"0000:00:02.0", "gpu", "Intel GPU", "Vulkan"},
                {"0000:00:0b.0", "npu", "Lunar Lake", "Intel NPUs"},
                {"0000:01:00.0", "gpu", "10de:2335", "libraries"},
                {"0000:03:00.0", "gpu", "AMD GPU", "ROCm"},
                {"0000:c5:00.1", "npu", "XDNA 2", "XDNA"}};
    for (int i = 0; i < 5; i++) {
        assert_string_equal(u[i].where, want[i].where);
        assert_string_equal(u[i].kind, want[i].kind);
        assert_non_null(strstr(u[i].name, want[i].word));
        assert_non_null(strstr(u[i].reason, want[i].reason));
    }
    assert_int_equal(imp_pci_read(root, u, 2), 2);
    snprintf(path, sizeof path, "rm -rf '%s'", root);
    assert_int_equal(system(path), 0);
    assert_int_equal(imp_pci_read(root, u, 16), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nvidia), cmocka_unit_test(pci)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
