# The Core ML device without a Mac: a stand-in for Apple's runtime that the tests load (x86-64), and the device's files built
# for macOS by clang and lld against declarations of our own.

# What the stand-in needs of ours, built again as position-independent code with its names kept inside.
FAKE_COREML := $(BUILD)/tests/fake/objc_coreml.so
FAKE_SRC    := $(wildcard src/base/*.c src/tensor/*.c src/fmt/mil_*.c src/fmt/mlp*.c src/fmt/quote.c src/fmt/json_load.c \
	src/dev/coreml/eval*.c src/dev/coreml/gemm.c)
FAKE_KERN   := $(patsubst src/%.c,$(BUILD)/tests/fake/obj/%.o,$(call src_of,kern))
ifeq ($(shell uname -s)-$(ARCH),Linux-x86_64)
$(FAKE_KERN): $(BUILD)/tests/fake/obj/%.o: src/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) $(call isa_flags,$<) -fPIC -fvisibility=hidden -MMD -MP -c $< -o $@
$(FAKE_COREML): tests/fake/objc_coreml.c mk/apple.mk $(FAKE_SRC) $(FAKE_KERN) $(wildcard src/base/*.h src/fmt/ml*.h src/dev/coreml/eval*.h)
	@mkdir -p $(@D)
	@echo "  FAKE  objc_coreml.so"
	$(Q)$(CC) $(CFLAGS_ALL) -Wno-conversion -fPIC -shared -fvisibility=hidden $(LDFLAGS_ALL) $< $(FAKE_SRC) $(FAKE_KERN) -Wl,-z,defs $(LIB_LIBS) -lm -o $@
$(BUILD)/tests/model/coreml_run $(BUILD)/tests/model/coreml_prefill $(BUILD)/tests/api/coreml: | $(FAKE_COREML)
endif

# `make apple`: the program for arm64-apple-macos13 by clang and ld64.lld, against tests/fake/macos/system.h in place of an
# SDK, and against the third-party headers of this machine. Linked with every symbol accounted for: macOS has what system.h
# declares, the libraries what the ones installed here export. Nothing of it is run.
APPLE_CC  ?= $(firstword $(shell command -v clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14 2>/dev/null))
APPLE_LD  ?= $(firstword $(shell command -v ld64.lld ld64.lld-14 2>/dev/null) $(wildcard /usr/lib/llvm-*/bin/ld64.lld))
APPLE     := $(BUILD)/apple
APPLE_INC := assert ctype dirent dlfcn errno fcntl ftw inttypes locale mach-o/dyld mach/mach math poll pthread sched signal \
	spawn stdio stdlib string strings sys/file sys/ioctl sys/mman sys/random sys/resource sys/stat sys/statvfs sys/sysctl \
	sys/time sys/types sys/uio sys/utsname sys/wait termios time unistd wchar wctype
APPLE_NET := arpa/inet netdb netinet/in netinet/tcp sys/select sys/socket
APPLE_3RD := jansson.h jansson_config.h utf8proc.h sqlite3.h pcre2.h microhttpd.h ini.h hwloc.h histedit.h hwloc
APPLE_LIB := microhttpd jansson pcre2-8 utf8proc hwloc edit inih sqlite3
APPLE_SRC  = $(foreach l,$(LAYERS) app,$(filter-out src/kern/x86/%,$(wildcard src/$(l)/*.c src/$(l)/*/*.c)))
APPLE_OBJ  = $(patsubst src/%.c,$(APPLE)/obj/%.o,$(APPLE_SRC))
APPLE_FLAGS = --target=arm64-apple-macos13 -nostdlibinc -isystem $(APPLE)/inc -std=gnu11 -D_GNU_SOURCE -O0 -ffp-contract=off \
	-Wall -Wextra -Werror -Wvla -Wconversion -Wno-sign-conversion -Wmissing-prototypes -Wstrict-prototypes \
	-Wno-incompatible-library-redeclaration -Iinclude -Isrc -I$(BUILD)/gen

# The headers' names, each leading to ours; third-party ones by links, so that nothing else of /usr/include is seen.
$(APPLE)/inc/stamp: mk/apple.mk
	@rm -rf $(@D) && mkdir -p $(@D)
	$(Q)for h in $(APPLE_INC); do mkdir -p $(@D)/$$(dirname $$h); echo '#include "$(CURDIR)/tests/fake/macos/system.h"' > $(@D)/$$h.h; done
	$(Q)for h in $(APPLE_NET); do mkdir -p $(@D)/$$(dirname $$h); echo '#include "$(CURDIR)/tests/fake/macos/socket.h"' > $(@D)/$$h.h; done
	$(Q)for d in /usr/include/editline /usr/include /usr/include/$$($(CC) -print-multiarch); do \
	  for h in $(APPLE_3RD); do \
	    [ -d $$d/$$h ] && mkdir -p $(@D)/$$h && for f in $$d/$$h/*; do ln -sfn $$f $(@D)/$$h/$${f##*/}; done; \
	    [ -f $$d/$$h ] && ln -sfn $$d/$$h $(@D)/$$h; \
	  done; done; touch $@

$(APPLE)/obj/%.o: src/%.c $(APPLE)/inc/stamp mk/apple.mk tests/fake/macos/system.h tests/fake/macos/socket.h
	@mkdir -p $(@D)
	$(Q)$(APPLE_CC) $(APPLE_FLAGS) $(if $(filter src/kern/%,$<),$(call isa_flags,$<)) -MMD -MP -c $< -o $@
$(APPLE)/obj/http/page.o: $(BUILD)/gen/web_index.h

# Stubs of the libraries: what they export here. (Their names are the same in Homebrew's builds.)
$(APPLE)/lib/%.tbd: mk/apple.mk
	@mkdir -p $(@D)
	$(Q)so=$$($(CC) -print-file-name=lib$*.so); test -e "$$so"; { \
	  printf -- '--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: /opt/homebrew/lib/lib%s.dylib\n' '$*'; \
	  printf 'exports:\n  - targets: [ arm64-macos ]\n    symbols: [ '; \
	  nm -D --defined-only $$so | awk '{ sub(/@.*/, "", $$3); print "_" $$3 }' | sort -u | paste -sd, - | sed 's/$$/ ]/'; printf '...\n'; } > $@.tmp && mv $@.tmp $@

# What the compiler calls by itself, and variables; functions are those that the headers name.
APPLE_OWN := __divti3 __exp10 __sincos_stret __stack_chk_fail __stack_chk_guard _tlv_bootstrap bzero memset_pattern16 \
	dyld_stub_binder environ __stdinp __stdoutp __stderrp mach_task_self_ __error
$(APPLE)/lib/System.tbd: tests/fake/macos/system.h tests/fake/macos/socket.h mk/apple.mk
	@mkdir -p $(@D)
	$(Q){ printf -- '--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: /usr/lib/libSystem.B.dylib\n'; \
	  printf 'exports:\n  - targets: [ arm64-macos ]\n    symbols: [ '; \
	  { sed -n 's/MATH[12](\([a-z0-9]*\))/\n=\1\n/gp' tests/fake/macos/system.h | sed -n 's/^=\(.*\)/\1\n\1f/p'; \
	    grep -ohE '[A-Za-z_][A-Za-z0-9_]*\(' tests/fake/macos/*.h | tr -d '('; printf '%s\n' $(APPLE_OWN); } | \
	    sed 's/^/_/; s/^_dyld_stub/dyld_stub/' | sort -u | paste -sd, - | sed 's/$$/ ]/'; \
	  printf '...\n'; } > $@.tmp && mv $@.tmp $@

$(APPLE)/impetus: $(APPLE_OBJ) $(APPLE_LIB:%=$(APPLE)/lib/%.tbd) $(APPLE)/lib/System.tbd
	$(Q)$(APPLE_LD) -arch arm64 -platform_version macos 13.0 13.0 -e _main -undefined error -dead_strip -o $@ $(APPLE_OBJ) \
	  $(APPLE)/lib/System.tbd $(APPLE_LIB:%=$(APPLE)/lib/%.tbd)
apple-tools:
	@test -n "$(APPLE_CC)" || { echo "clang is not here (Debian: clang)"; exit 3; }
	@test -n "$(APPLE_LD)" || { echo "ld64.lld is not here (Debian: lld)"; exit 3; }
apple: $(APPLE)/impetus
	@echo "  APPLE $(words $(APPLE_OBJ)) files compiled for arm64-apple-macos13 and linked to $< (not run here)"
.PHONY: apple apple-tools
-include $(APPLE_OBJ:.o=.d)
