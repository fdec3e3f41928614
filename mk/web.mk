# web/index.html as a C array under $(BUILD)/gen, for src/http/page.c.
$(BUILD)/gen/web_index.h: web/index.html
	@mkdir -p $(@D)
	$(Q)( echo 'static const unsigned char web_index[] = {'; od -An -v -tu1 $< | sed 's/\([0-9][0-9]*\)/\1,/g'; echo '0};' ) > $@.tmp && mv $@.tmp $@
$(BUILD)/obj/http/page.o: $(BUILD)/gen/web_index.h
