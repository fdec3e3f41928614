# make test-arm: the Arm kernels by a cross compiler, checked under qemu-user (Debian: gcc-aarch64-linux-gnu, qemu-user).
# kern, tensor and base need no outside library, so nothing but a cross compiler is asked for.
ARM_CC   ?= aarch64-linux-gnu-gcc
ARM_RUN  ?= qemu-aarch64
ARM_SRC  := $(wildcard src/base/*.c src/tensor/*.c src/kern/*.c src/kern/ref/*.c src/kern/arm/*.c)
ARM_OBJ  := $(patsubst src/%.c,$(BUILD)/arm/obj/%.o,$(ARM_SRC))
ARM_FLAGS = -std=gnu11 -D_GNU_SOURCE -O2 -g -ffp-contract=off -Wall -Wextra -Werror -Wvla -Wconversion -Wno-sign-conversion \
	-Wmissing-prototypes -Wstrict-prototypes -Iinclude -Isrc

$(BUILD)/arm/obj/%.o: src/%.c
	@mkdir -p $(@D)
	@echo "  ARM   $<"
	$(Q)$(ARM_CC) $(ARM_FLAGS) $(if $(filter src/kern/%,$<),$(call isa_flags,$<)) -MMD -MP -c $< -o $@
$(BUILD)/arm/checkkern: tools/checkkern.c $(ARM_OBJ)
	@echo "  ARM   checkkern"
	$(Q)$(ARM_CC) $(ARM_FLAGS) -static -pthread $< $(ARM_OBJ) -lm -MMD -MP -MF $@.d -o $@

# Once with every instruction set, once with NEON alone, so that selection without SDOT is seen too.
test-arm: $(BUILD)/arm/checkkern
	@$(ARM_RUN) -cpu max $< && $(ARM_RUN) -cpu max $< --mask neon --op cpu

-include $(ARM_OBJ:.o=.d) $(BUILD)/arm/checkkern.d
.PHONY: test-arm
