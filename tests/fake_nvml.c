/* A stand-in for libnvidia-ml.so.1 (and, under another name, libcuda.so.1): two GPUs, one of them cut into instances and
 * without an energy counter, as the tests expect them. Built as a shared object; loaded by dlopen like the real one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int g_gpu[2] = {0, 1};
static unsigned long long g_mj = 5000000;

int nvmlInit_v2(void)
{
    return getenv("FAKE_NVML_BROKEN") ? 9 : 0; /* NVML_ERROR_DRIVER_NOT_LOADED */
}
int nvmlShutdown(void)
{
    return 0;
}
int nvmlSystemGetDriverVersion(char *s, unsigned n)
{
    const char *v = getenv("FAKE_NVML_DRIVER");
    snprintf(s, n, "%s", v ? v : "999.12.03");
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned *n)
{
    *n = 2;
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned i, int **d)
{
    if (i > 1) return 2;
    *d = &g_gpu[i];
    return 0;
}
int nvmlDeviceGetName(int *d, char *s, unsigned n)
{
    snprintf(s, n, *d ? "NVIDIA Imaginary 20" : "NVIDIA Imaginary 10");
    return 0;
}
int nvmlDeviceGetMemoryInfo(int *d, unsigned long long *m)
{
    m[0] = (*d ? 8ull : 24ull) << 30, m[1] = 6ull << 30, m[2] = m[0] - m[1];
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(int *d, int *major, int *minor)
{
    *major = *d ? 7 : 9, *minor = *d ? 5 : 0;
    return 0;
}
int nvmlDeviceGetPciInfo_v3(int *d, void *p)
{
    struct {
        char legacy[16];
        unsigned domain, bus, device, id, sub;
        char bus_id[32];
    } *pci = p;
    memset(pci, 0, sizeof *pci);
    pci->bus = *d ? 0x5e : 0x18;
    return 0;
}
int nvmlDeviceGetCurrPcieLinkGeneration(int *d, unsigned *n)
{
    (void)d;
    *n = 4;
    return 0;
}
int nvmlDeviceGetCurrPcieLinkWidth(int *d, unsigned *n)
{
    *n = *d ? 8 : 16;
    return 0;
}
int nvmlDeviceGetMaxPcieLinkGeneration(int *d, unsigned *n)
{
    (void)d;
    *n = 5;
    return 0;
}
int nvmlDeviceGetMaxPcieLinkWidth(int *d, unsigned *n)
{
    (void)d;
    *n = 16;
    return 0;
}
int nvmlDeviceGetPowerManagementLimit(int *d, unsigned *mw)
{
    *mw = *d ? 170000 : 350000;
    return 0;
}
int nvmlDeviceGetMigMode(int *d, unsigned *now, unsigned *pending)
{
    *now = *pending = (unsigned)*d;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(int *d, unsigned long long *mj)
{
    if (*d) return 3; /* NVML_ERROR_NOT_SUPPORTED */
    *mj = g_mj += 2500;
    return 0;
}
