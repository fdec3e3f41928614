# The Core ML device without a Mac: a stand-in for Apple's runtime that the tests load (x86-64), and the device's files built
# for macOS by clang and lld against declarations of our own.

# What the stand-in needs of ours, built again as position-independent code with its names kept inside.
FAKE_COREML := $(BUILD)/tests/fake/objc_coreml.so
FAKE_SRC    := $(wildcard src/base/*.c src/tensor/*.c src/fmt/mil_*.c src/fmt/mlp*.c src/fmt/quote.c src/fmt/json_load.c \
	src/dev/coreml/eval*.c src/dev/coreml/gemm.c)
FAKE_KERN   := $(patsubst src/%.c,$(BUILD)/tests/fake/obj/%.o,$(call src_of,kern))
ifeq ($(ARCH),x86_64)
$(FAKE_KERN): $(BUILD)/tests/fake/obj/%.o: src/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) $(call isa_flags,$<) -fPIC -fvisibility=hidden -MMD -MP -c $< -o $@
$(FAKE_COREML): tests/fake/objc_coreml.c mk/apple.mk $(FAKE_SRC) $(FAKE_KERN) $(wildcard src/base/*.h src/fmt/ml*.h src/dev/coreml/eval*.h)
	@mkdir -p $(@D)
	@echo "  FAKE  objc_coreml.so"
	$(Q)$(CC) $(CFLAGS_ALL) -Wno-conversion -fPIC -shared -fvisibility=hidden $(LDFLAGS_ALL) $< $(FAKE_SRC) $(FAKE_KERN) -Wl,-z,defs $(LIB_LIBS) -lm -o $@
$(BUILD)/tests/model/coreml_run $(BUILD)/tests/api/coreml: | $(FAKE_COREML)
endif
