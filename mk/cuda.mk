# The CUDA device's kernels: compiled by nvcc into fatbins (machine code for compute capability 9.0a and 8.0, PTX for what
# comes after) that src/dev/cuda/kernels.c takes in. Without nvcc the program builds all the same and says so.
NVCC ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_KERNELS := ops gemv gemm attn pack flash attn_step mid reduce top flash_wg
CUDA_GEN     := $(BUILD)/gen/cuda
CUDA_ARCH    ?= -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=[sm_80,compute_80]

ifneq ($(NVCC),)
$(CUDA_GEN)/%.fatbin: src/dev/cuda/%.cu src/dev/cuda/args.h $(wildcard src/dev/cuda/*.cuh)
	@mkdir -p $(@D)
	@echo "  NVCC  $<"
	$(Q)$(NVCC) -std=c++17 -O3 -diag-suppress 177 -fatbin $(CUDA_ARCH) $< -o $@
$(BUILD)/obj/dev/cuda/kernels.o: CFLAGS_ALL += -DIMP_CUDA_FATBIN='"$(CUDA_GEN)"'
$(BUILD)/obj/dev/cuda/kernels.o: $(CUDA_KERNELS:%=$(CUDA_GEN)/%.fatbin)
else
$(BUILD)/obj/dev/cuda/kernels.o: | cuda-note
endif
cuda-note:
	@echo "  NOTE  nvcc was not found: the program is built without the CUDA device"
.PHONY: cuda-note

$(BUILD)/gpu_bench: bench/gpu_bench.c $(call libs_of,sched)
	@echo "  CC    $<"
	$(Q)$(CC) $(CFLAGS_ALL) -Wno-conversion $(LDFLAGS_ALL) $< -Wl,--start-group $(call libs_of,sched) -Wl,--end-group $(LIB_LIBS) -lm -o $@
