# Impetus. `make run` serves the bundled models, `make test` runs all tests; both install what is missing.
#
#   make                 build/impetus and build/libimpetus.a
#   make deps            install the libraries (apt or brew)
#   make run             build and serve on http://127.0.0.1:8080
#   make test            build and run the test suite
#   make test-reference  the slow comparisons with other implementations (needs PyPI)
#   make apple           the program for arm64-apple-macos by clang and lld, to see that it compiles and links there
#   make soak            2000 streams for five minutes, 10000 slow clients
#   make test-arm        Arm kernels by a cross compiler, under qemu-user
#   make fuzz            libFuzzer targets (clang), FUZZ_SECONDS each
#   make format          clang-format in place;  make check-format  complain only
#   make install         PREFIX=/usr/local
#   options: CC=clang  SAN=address,undefined  SAN=thread  BUILD=dir  V=1
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules

ifeq ($(origin CC),default)
CC := cc
endif
comma := ,
BUILD  ?= build$(if $(filter-out cc,$(CC)),/$(notdir $(CC)))$(if $(SAN),/san-$(subst $(comma),-,$(SAN)))
PREFIX ?= /usr/local
Q      := $(if $(V),,@)
JOBS   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif

# Flags of the libraries; made (and, for run and test, missing libraries installed) by tools/configure.
CONFIG_FREE := clean format check-format check-layers
ifeq ($(if $(MAKECMDGOALS),$(filter-out $(CONFIG_FREE),$(MAKECMDGOALS)),all),)
else
include $(BUILD)/config.mk
endif
INSTALL_GOALS := run test deps test-reference test-arm fuzz
$(BUILD)/config.mk: tools/configure
	@mkdir -p $(@D)
	@CC="$(CC)" sh tools/configure $(if $(filter $(INSTALL_GOALS),$(MAKECMDGOALS)),--install) > $@.tmp && mv $@.tmp $@

OPT    ?= -O2
CFLAGS_ALL = -std=gnu11 -D_GNU_SOURCE $(OPT) -g -fno-omit-frame-pointer -ffp-contract=off -Wall -Wextra -Werror -Wvla -Wconversion \
	-Wno-sign-conversion -Wmissing-prototypes -Wstrict-prototypes -Iinclude -Isrc -I$(BUILD)/gen \
	$(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all) $(LIB_CFLAGS) $(CFLAGS)
LDFLAGS_ALL = $(if $(SAN),-fsanitize=$(SAN)) -pthread $(LDFLAGS)

# Layers, bottom first. Which of them a layer may link to is what tools/check_layers enforces for includes.
LAYERS   := base tensor kern fmt text graph dev model plan sched engine api http
c_base   := base
c_tensor := tensor base
c_kern   := kern tensor base
c_fmt    := fmt tensor base
c_text   := text base
c_graph  := graph tensor base
c_dev    := dev graph kern fmt tensor base
c_model  := model dev graph text fmt kern tensor base
c_plan   := plan $(c_model)
c_sched  := sched $(c_plan)
c_engine := engine $(c_sched)
c_api    := api $(c_engine)
c_http   := http $(c_api)
c_fault  := $(c_http)

# A kernel file's suffix sets its compiler flags; nothing else is built for a particular CPU.
isa_avx2       := -mavx2 -mfma -mf16c
isa_avxvnni    := -mavx2 -mfma -mf16c -mavxvnni
isa_avx512     := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
isa_avx512vnni := $(isa_avx512) -mavx512vnni
isa_amx        := $(isa_avx512vnni) -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16
isa_neon       :=
isa_dotprod    := -march=armv8.2-a+dotprod+fp16
isa_i8mm       := -march=armv8.2-a+dotprod+fp16+i8mm
isa_bf16       := -march=armv8.2-a+bf16+fp16
isa_flags       = $(isa_$(lastword $(subst _, ,$(basename $(notdir $(1))))))
ARCH           := $(shell uname -m)
KERN_SKIP      := $(if $(filter x86_64,$(ARCH)),arm,x86)

src_of  = $(filter-out src/kern/$(KERN_SKIP)/%,$(wildcard src/$(1)/*.c src/$(1)/*/*.c))
obj_of  = $(patsubst src/%.c,$(BUILD)/obj/%.o,$(call src_of,$(1)))
libs_of = $(foreach l,$(c_$(1)),$(BUILD)/lib/$(l).a)

all: $(BUILD)/impetus $(BUILD)/libimpetus.a

$(BUILD)/obj/kern/%.o: src/kern/%.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(call isa_flags,$<) -MMD -MP -c $< -o $@
$(BUILD)/obj/%.o: src/%.c
	@mkdir -p $(@D)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

define layer_rule
$(BUILD)/lib/$(1).a: $(call obj_of,$(1))
	@mkdir -p $$(@D)
	$$(Q)rm -f $$@ && ar rcs $$@ $(call obj_of,$(1))
endef
$(foreach l,$(LAYERS),$(eval $(call layer_rule,$(l))))

OBJ_ALL := $(foreach l,$(LAYERS),$(call obj_of,$(l)))
$(BUILD)/libimpetus.a: $(OBJ_ALL)
	@echo "  AR    $@"
	$(Q)rm -f $@ && ar rcs $@ $^
$(BUILD)/impetus: $(call obj_of,app) $(BUILD)/libimpetus.a
	@echo "  LD    $@"
	$(Q)$(CC) $(LDFLAGS_ALL) $(call obj_of,app) $(BUILD)/libimpetus.a $(LIB_LIBS) -lm -o $@

# Tests. tests/unit/LAYER_*.c links that layer and what lies below; the other folders link what their name says.
TEST_SRC := $(wildcard tests/unit/*.c tests/kern/*.c tests/dev/*.c tests/model/*.c tests/api/*.c tests/fault/*.c)
TEST_BIN := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
test_layer = $(if $(filter unit/%,$(1)),$(firstword $(subst _, ,$(notdir $(1)))),$(patsubst api,http,$(firstword $(subst /, ,$(1)))))
define test_rule
$(BUILD)/tests/$(1): tests/$(1).c $(call libs_of,$(call test_layer,$(1))) $(wildcard tests/*.h)
	@mkdir -p $$(@D)
	@echo "  TEST  $(1)"
	$$(Q)$$(CC) $$(CFLAGS_ALL) -Wno-conversion -Itests $$(LDFLAGS_ALL) tests/$(1).c -Wl,--start-group $(call libs_of,$(call test_layer,$(1))) -Wl,--end-group $$(LIB_LIBS) $$(TEST_LIBS) -lm -MMD -MP -MF $$@.d -o $$@
endef
$(foreach t,$(patsubst tests/%.c,%,$(TEST_SRC)),$(eval $(call test_rule,$(t))))
ifeq ($(ARCH),x86_64)
$(BUILD)/tests/unit/kern_amx: private CFLAGS_ALL += $(isa_amx)
endif

# Fuzz targets: fuzz/NAME.c defines LLVMFuzzerTestOneInput; `make test` replays fuzz/corpus/NAME through fuzz/replay.c.
FUZZ_NAMES := $(filter-out replay,$(patsubst fuzz/%.c,%,$(wildcard fuzz/*.c)))
$(BUILD)/fuzz/%-replay: fuzz/%.c fuzz/replay.c $(BUILD)/libimpetus.a
	@mkdir -p $(@D)
	@echo "  FUZZ  $*"
	$(Q)$(CC) $(CFLAGS_ALL) -Wno-conversion -Wno-missing-prototypes $(LDFLAGS_ALL) fuzz/$*.c fuzz/replay.c $(BUILD)/libimpetus.a $(LIB_LIBS) -lm -o $@

# Programs of the tests that are no tests themselves: tools/*.c (checkkern).
TOOL_BIN := $(patsubst tools/%.c,$(BUILD)/%,$(wildcard tools/*.c))
$(BUILD)/%: tools/%.c $(call libs_of,kern)
	@mkdir -p $(@D)
	@echo "  TOOL  $*"
	$(Q)$(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL) $< -Wl,--start-group $(call libs_of,kern) -Wl,--end-group -lm -MMD -MP -MF $@.d -o $@

TEST_PROGS := $(TEST_BIN) $(patsubst %,$(BUILD)/fuzz/%-replay,$(FUZZ_NAMES))
tests: $(BUILD)/impetus $(TOOL_BIN) $(TEST_PROGS)
test: tests
	@BUILD=$(BUILD) SAN=$(SAN) sh tools/run_tests $(TEST_PROGS)
check-layers:
	@tools/check_layers
deps: $(BUILD)/config.mk
	@echo "all libraries are there"

# What `make run` serves; models/stories260K.gguf is for the tests.
MODELS := models/impetus-nano.gguf models/impetus-nano-embed.gguf
run: $(BUILD)/impetus
	@$(BUILD)/impetus serve $(foreach m,$(MODELS),-m $(m)) $(ARGS)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/impetus/models
	install -m 755 $(BUILD)/impetus $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BUILD)/libimpetus.a $(DESTDIR)$(PREFIX)/lib/
	install -m 644 include/impetus.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(MODELS) $(DESTDIR)$(PREFIX)/share/impetus/models/

FORMAT_SRC = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h')
format:
	clang-format -i $(FORMAT_SRC)
check-format:
	clang-format --dry-run -Werror $(FORMAT_SRC)
clean:
	rm -rf $(BUILD)/obj $(BUILD)/lib $(BUILD)/tests $(BUILD)/fuzz $(BUILD)/gen $(BUILD)/impetus $(BUILD)/libimpetus.a $(BUILD)/config.mk

-include $(wildcard mk/*.mk)
-include $(OBJ_ALL:.o=.d) $(patsubst %.o,%.d,$(call obj_of,app)) $(TEST_BIN:=.d) $(TOOL_BIN:=.d)
.PHONY: all tests test check-layers deps run install format check-format clean
