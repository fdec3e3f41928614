#!/usr/bin/env python3
"""Print src/text/jinja/case_table.inc: the characters whose upper, lower, title or folded form is more than one character."""


def c_string(s):
    return '"' + "".join(f"\\{b:03o}" for b in s.encode()) + '"'


print("/* Made by tools/gen/case_table.py from Python's Unicode tables: {code point, upper, lower, title, fold}. */")
for cp in range(0x110000):
    ch = chr(cp)
    if 0xD800 <= cp < 0xE000:
        continue
    forms = ch.upper(), ch.lower(), ch.title(), ch.casefold()
    if any(len(f) > 1 for f in forms):
        print(f"{{0x{cp:04x}, {', '.join(c_string(f) for f in forms)}}},")
