# `make soak`: 2000 streams for five minutes and 10000 slow clients (tests/api/soak.c); the short form is part of make test.
soak: $(BUILD)/tests/api/soak
	IMPETUS_SOAK=300 $(BUILD)/tests/api/soak
.PHONY: soak
