# Stand-ins for libraries that this machine does not have, for the tests: tests/fake_NAME.c as $(BUILD)/tests/fake/*.so.
FAKE_NVML := $(BUILD)/tests/fake/libnvidia-ml.so.1
$(FAKE_NVML): tests/fake_nvml.c
	@mkdir -p $(@D)
	@echo "  FAKE  $(@F)"
	$(Q)$(CC) -std=gnu11 -O1 -g -Wall -Wextra -fPIC -shared $< -o $@
$(BUILD)/tests/unit/plan_probe $(BUILD)/tests/unit/plan_meter: $(FAKE_NVML)
$(BUILD)/tests/unit/plan_probe $(BUILD)/tests/unit/plan_meter: CFLAGS_ALL += -DFAKE_NVML='"$(abspath $(FAKE_NVML))"'
tests: $(FAKE_NVML)
