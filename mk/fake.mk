# Stand-ins for libraries that this machine does not have, for the tests: tests/fake_NAME.c as $(BUILD)/tests/fake/*.so.
FAKE_NVML := $(BUILD)/tests/fake/libnvidia-ml.so.1
$(FAKE_NVML): tests/fake_nvml.c
	@mkdir -p $(@D)
	@echo "  FAKE  $(@F)"
	$(Q)$(CC) -std=gnu11 -O1 -g -Wall -Wextra -fPIC -shared $< -o $@
$(BUILD)/tests/unit/plan_probe $(BUILD)/tests/unit/plan_meter: $(FAKE_NVML)
$(BUILD)/tests/unit/plan_probe $(BUILD)/tests/unit/plan_meter: CFLAGS_ALL += -DFAKE_NVML='"$(abspath $(FAKE_NVML))"'
tests: $(FAKE_NVML)

# Counts what it hands out, so it is built with the tests' sanitizers; the second one lacks a function.
FAKE_IOREPORT := $(BUILD)/tests/fake/libIOReport.so $(BUILD)/tests/fake/libIOReport_cut.so
$(FAKE_IOREPORT): tests/fake_ioreport.c
	@mkdir -p $(@D)
	@echo "  FAKE  $(@F)"
	$(Q)$(CC) $(CFLAGS_ALL) -Wno-conversion -Wno-missing-prototypes -fPIC -shared $(LDFLAGS_ALL) $(if $(findstring _cut,$@),-DNO_DELTA) $< -o $@
$(BUILD)/tests/unit/plan_meter_apple: $(FAKE_IOREPORT)
$(BUILD)/tests/unit/plan_meter_apple: private CFLAGS_ALL += -DFAKE_IOREPORT='"$(abspath $(word 1,$(FAKE_IOREPORT)))"' -DFAKE_IOREPORT_CUT='"$(abspath $(word 2,$(FAKE_IOREPORT)))"'
tests: $(FAKE_IOREPORT)
