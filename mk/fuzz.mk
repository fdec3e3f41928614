# `make fuzz`: every target of fuzz/*.c under libFuzzer, ASan and UBSan, FUZZ_SECONDS each (default 60).
# New inputs are kept in build/fuzz-clang/corpus; `make fuzz-merge` takes the ones that reach new code into fuzz/corpus.
FUZZ_SECONDS ?= 60
FUZZ_CC      ?= clang
FUZZ_BUILD   := build/fuzz-clang
FUZZ_FLAGS   := -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_RUN     := -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1

# The layers a target needs; all of them when it does not say.
fuzz_gguf        := fmt tensor base
fuzz_safetensors := fmt tensor base
fuzz_jinja       := text base
fuzz_grammar     := text base
fuzz_mlpackage   := fmt tensor base
fuzz_coreml_worker := dev kern graph fmt tensor base
fuzz_adapter     := model graph kern fmt text tensor base
fuzz_objs = $(patsubst src/%.c,$(FUZZ_BUILD)/obj/%.o,$(foreach l,$(or $(fuzz_$(1)),$(LAYERS)),$(call src_of,$(l))))

ifneq ($(filter fuzz fuzz-%,$(MAKECMDGOALS)),)
HAVE_FUZZER := $(shell echo 'int LLVMFuzzerTestOneInput(const char *p, long n) { return p == 0 && n == 1; }' | \
	$(FUZZ_CC) -x c -fsanitize=fuzzer - -o /dev/null 2>/dev/null && echo yes)
ifneq ($(HAVE_FUZZER),yes)
$(error $(FUZZ_CC) with libFuzzer is needed for this goal: install clang (Debian: clang, libclang-rt-14-dev))
endif
endif

$(FUZZ_BUILD)/obj/%.o: src/%.c
	@mkdir -p $(@D)
	@echo "  FUZZCC $<"
	$(Q)$(FUZZ_CC) $(CFLAGS_ALL) $(if $(filter src/kern/%,$<),$(call isa_flags,$<)) -fsanitize=fuzzer-no-link $(FUZZ_FLAGS) -MMD -MP -c $< -o $@

define fuzz_rule
$(FUZZ_BUILD)/$(1): fuzz/$(1).c $(call fuzz_objs,$(1))
	@mkdir -p $$(@D)
	$$(Q)$$(FUZZ_CC) $$(CFLAGS_ALL) -Wno-conversion -fsanitize=fuzzer $$(FUZZ_FLAGS) $$^ -pthread $$(LDFLAGS) $$(LIB_LIBS) -lm -o $$@
fuzz-$(1): $(FUZZ_BUILD)/$(1)
	@mkdir -p $(FUZZ_BUILD)/corpus/$(1) fuzz/corpus/$(1)
	$(FUZZ_BUILD)/$(1) $(FUZZ_RUN) $(if $(wildcard fuzz/$(1).dict),-dict=fuzz/$(1).dict) -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$(FUZZ_BUILD)/$(1)- \
		$(FUZZ_BUILD)/corpus/$(1) fuzz/corpus/$(1)
fuzz-merge-$(1): $(FUZZ_BUILD)/$(1)
	@mkdir -p $(FUZZ_BUILD)/corpus/$(1) fuzz/corpus/$(1)
	$(FUZZ_BUILD)/$(1) $(FUZZ_RUN) -merge=1 fuzz/corpus/$(1) $(FUZZ_BUILD)/corpus/$(1)
endef
$(foreach t,$(FUZZ_NAMES),$(eval $(call fuzz_rule,$(t))))

fuzz: $(addprefix fuzz-,$(FUZZ_NAMES))
fuzz-merge: $(addprefix fuzz-merge-,$(FUZZ_NAMES))
.PHONY: fuzz fuzz-merge $(addprefix fuzz-,$(FUZZ_NAMES)) $(addprefix fuzz-merge-,$(FUZZ_NAMES))

-include $(wildcard $(FUZZ_BUILD)/obj/*/*.d $(FUZZ_BUILD)/obj/*/*/*.d)
