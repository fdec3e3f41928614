# llama.cpp, from the source distribution of llama-cpp-python, built for this machine in build/peer: the program we are
# compared with (bench/peers.py) and an independent evaluation of GGUF files (tests/reference).   make peers
PEER_VERSION := 0.3.36
PEER_DIR     := $(BUILD)/peer
PEER_SDIST   := $(PEER_DIR)/llama_cpp_python-$(PEER_VERSION).tar.gz
PEER_TOOLS   := llama-bench llama-quantize llama-perplexity llama-completion

$(PEER_SDIST): | $(BUILD)/venv/stamp
	@mkdir -p $(@D)
	@echo "  FETCH $(@F)"
	$(Q)$(VENV)/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d $(@D) llama-cpp-python==$(PEER_VERSION)
$(PEER_DIR)/src/CMakeLists.txt: $(PEER_SDIST)
	@mkdir -p $(@D)
	$(Q)tar xzmf $< -C $(@D) --strip-components=3 llama_cpp_python-$(PEER_VERSION)/vendor/llama.cpp
$(PEER_DIR)/build/bin/llama-bench: $(PEER_DIR)/src/CMakeLists.txt
	@command -v cmake >/dev/null && command -v c++ >/dev/null || { echo "llama.cpp needs cmake and a C++ compiler" >&2; exit 1; }
	@echo "  PEER  llama.cpp (10 to 30 minutes)"
	$(Q)cmake -S $(PEER_DIR)/src -B $(PEER_DIR)/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON \
	  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF > $(PEER_DIR)/cmake.log 2>&1
	$(Q)nice -n 19 cmake --build $(PEER_DIR)/build -j $(PEER_JOBS) --target $(PEER_TOOLS) > $(PEER_DIR)/build.log 2>&1
	$(Q)touch $@
$(PEER_DIR)/peer_eval: tests/reference/peer_eval.c $(PEER_DIR)/build/bin/llama-bench
	@echo "  PEER  $@"
	$(Q)$(CC) -O1 -Wall -I$(PEER_DIR)/src/include -I$(PEER_DIR)/src/ggml/include $< -L$(PEER_DIR)/build/bin -lllama -lggml -lggml-base \
	  -Wl,-rpath,$(abspath $(PEER_DIR)/build/bin) -o $@
PEER_JOBS ?= 1
peers: $(PEER_DIR)/build/bin/llama-bench $(PEER_DIR)/peer_eval
bench-peers: $(BUILD)/impetus peers
	@$(VENV)/bin/python bench/peers.py --build $(BUILD) $(ARGS)
.PHONY: peers bench-peers
