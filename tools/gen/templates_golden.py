#!/usr/bin/env python3
"""Make tests/data/templates/*.json: what Python's jinja2 renders, in the environment that transformers documents for chat
templates, for every template of that folder with 40 conversations, and for a few hundred snippets.   pip install jinja2

NAME.json: {"lines": [text, ...], "out": [[line, ...] | null for an error, ...]}, one entry a conversation, its text the
lines put together.  snippets.json: [[template, vars, text | null], ...]"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATA = pathlib.Path(__file__).resolve().parent.parent.parent / "tests" / "data" / "templates"
NOW = datetime.datetime(2026, 3, 4, 15, 6, 7)  # what strftime_now shows; the C test sets the same time in UTC


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks the assistant's text, and changes nothing in it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, attrs = args[0], dict(*args[1:], **kwargs)
        for name in attrs:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


Namespace.__name__ = "TemplateNamespace"


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: NOW.strftime(f)
    env.globals["dict"] = dict
    env.globals["namespace"] = Namespace
    return env


ENV = environment()


def render(template, variables):
    """The text, or None where jinja2 raises."""
    try:
        return ENV.from_string(template).render(**variables)
    except Exception:  # every error of a template counts the same
        return None


# ---- conversations ----------------------------------------------------------------------------------------------------
def tool(name, description, properties, required):
    return {"type": "function", "function": {"name": name, "description": description,
            "parameters": {"type": "object", "properties": properties, "required": required}}}


WEATHER = tool("get_weather", "Current weather of a place", {"city": {"type": "string", "description": "City, as in 'Köln'"},
               "unit": {"type": "string", "enum": ["C", "F"], "description": "Unit"}}, ["city"])
CALC = tool("calc", "Add \"numbers\" <fast> & exactly", {"values": {"type": "array", "items": {"type": "number"}, "description": " Numbers "},
            "round": {"type": "integer", "description": "Digits"}, "opts": {"type": "object", "additionalProperties": {"type": "boolean"},
            "description": "Options"}}, ["values"])
UNION = tool("pick", "One of many", {"n": {"type": ["integer", "null"], "description": "Any"}}, ["n"])
NOARGS = tool("now", "The time", {}, [])


def m(role, content, **more):
    return {"role": role, "content": content, **more}


def calls(*items):
    return [{"id": f"call{i:05d}", "type": "function", "function": {"name": n, "arguments": a}} for i, (n, a) in enumerate(items)]


SYS, USER = m("system", "You are terse."), m("user", "Hello, who are you?")
ASK = m("user", "Weather in Köln and 2+2?")
CALL = m("assistant", "", tool_calls=calls(("get_weather", {"city": "Köln", "unit": "C"})))
RESULT = m("tool", '{"temp": 12.5, "sky": "☁️"}', name="get_weather", tool_call_id="call00000")
TWO = m("assistant", "Let me look.", tool_calls=calls(("get_weather", {"city": "Paris"}), ("calc", {"values": [2, 2.5, -1e20], "opts": {"a": True, "b": None}})))
MULTI = [USER, m("assistant", "A program."), m("user", "Say more."), m("assistant", "No."), m("user", "Please?")]
REASON = m("assistant", "The answer is 4.", reasoning_content="2+2\nis 4.")
THINK = m("assistant", "<think>\nfirst this\nthen that\n</think>\n\nDone: 4.")
PARTS = m("user", [{"type": "text", "text": "What is"}, {"type": "text", "text": " this?"}])
IMAGE = m("user", [{"type": "image", "url": "x.png"}, {"type": "text", "text": "Describe."}])
UNI = m("user", "Ünïcödé 日本語 🦊 \u202e \u0000 \t|\r\n| \"quotes\" 'single' <b>&amp;</b> \\n {{ x }} {% if %}")
DOCS = [{"doc_id": 1, "title": "Foxes", "text": "Foxes are red."}, {"doc_id": 2, "title": "Owls", "text": "Owls are wise."}]


def conversations():
    c = [dict(messages=x) for x in (
        [USER], [SYS, USER], MULTI, [SYS, *MULTI], [USER, m("assistant", "Hi")], [SYS, USER, THINK, m("user", "Thanks")],
        [USER, REASON, m("user", "And 3+3?")], [USER, REASON], [USER, THINK], [m("user", "")], [m("system", ""), USER],
        [UNI], [m("system", "  spaces  \n\n"), m("user", "\n trimmed? \n\n"), m("assistant", " a \n"), m("user", "\tx ")],
        [PARTS], [SYS, IMAGE, m("assistant", "A fox."), PARTS], [USER, m("assistant", None), m("user", "?")], [m("user", None)], [],
        [m("assistant", "I begin.")], [USER, USER], [SYS, SYS, USER], [m("owl", "hoot")], [m("system", "/no_think Be brief."), USER],
        [m("user", "x /nothink")])]
    tools = [WEATHER, CALC, NOARGS]
    c += [dict(messages=x, tools=tools) for x in (
        [USER], [SYS, ASK], [SYS, ASK, CALL, RESULT], [ASK, CALL, RESULT, m("assistant", "12.5 °C.")],
        [SYS, ASK, TWO, RESULT, m("tool", "3.5", tool_call_id="call00001"), m("assistant", "Both done."), m("user", "Thanks")],
        [ASK, CALL, RESULT, m("assistant", "So: 12.5", reasoning_content="It said 12.5"), m("user", "ok")],
        [ASK, m("assistant", None, tool_calls=calls(("now", {}))), m("tool", "noon", tool_call_id="call00000")],
        [ASK, m("assistant", "", tool_calls=calls(("get_weather", '{"city": "Köln"}'))), RESULT])]
    c += [dict(messages=[ASK, CALL, RESULT]), dict(messages=[USER], tools=[]), dict(messages=[SYS, USER], documents=DOCS),
          dict(messages=[USER], documents=DOCS, tools=[UNION], controls={"citations": True, "length": "short"}),
          dict(messages=[USER], thinking=True), dict(messages=[SYS, ASK], tools=[WEATHER], builtin_tools=["brave_search", "code_interpreter"]),
          dict(messages=[USER], date_string="1 Jan 2020", tools_in_user_message=False, tools=[WEATHER]),
          dict(messages=[SYS, USER, REASON, ASK, CALL, RESULT, m("assistant", "Fine.")], tools=[WEATHER])]
    out = []
    for i, x in enumerate(c):
        v = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": i % 3 != 1, **x}
        if i % 4 == 2:
            v["enable_thinking"] = i % 8 == 2
        if i == 7:
            del v["bos_token"], v["eos_token"]
        out.append(v)
    return out


# ---- snippets -----------------------------------------------------------------------------------------------------------
VARS = {"x": 5, "f": 2.5, "s": "Hello, Wörld", "e": "", "n": None, "t": True, "l": [3, 1, 2], "d": {"b": 1, "a": [1, "two", None], "items": "mine"},
        "words": ["pear", "Apple", "fig", "apple"], "deep": {"a": {"b": [{"c": "found"}]}}, "q": "it's \"q\"\n\t\\", "uni": "a日🦊é",
        "users": [{"name": "Bo", "age": 30, "on": True}, {"name": "al", "age": 25, "on": False}, {"name": "Cy", "age": 30}]}

EXPRESSIONS = r"""
1 + 2 * 3 ## (1 + 2) * 3 ## 7 // 2 ## -7 // 2 ## 7 % 3 ## -7 % 3 ## 7 % -3 ## 7 / 2 ## 2 ** 10 ## 2 ** -1 ## -2 ** 2 ## 2 ** 3 ** 2 ## 7.5 // 2 ## -7.5 % 2
1e3 ## 1.0 ## 0.1 + 0.2 ## 1e16 ## 123456789012345678.0 ## 1e-5 ## 0.0001 ## 1.5e300 ## 5 / 5 ## 3.0 * 2 ## 1_000 ## 0x1f ## 0b101 ## 0o17 ## 1_0.5_0 ## 1e2 ## 00
1 / 0 ## 1 // 0 ## 1 % 0 ## 1.0 / 0 ## true + 1 ## true == 1 ## 1 == 1.0 ## "1" == 1 ## none == none ## x == 5 ## x != 5 ## 1 < 2 < 3 ## 1 < 3 < 2 ## 3 > 2 >= 2
"a" < "b" ## "a" < 1 ## [1, 2] < [1, 3] ## [1] == (1,) ## {"a": 1} == {"a": 1.0} ## 1 in [1, 2] ## 3 not in [1, 2] ## "ell" in s ## "" in s ## 1 in "abc" ## "b" in d ## "c" in d ## 1 in none ## 1 in nope
x and 0 ## x or 0 ## 0 or "z" ## not x ## not not x ## none or false ## x and "y" and [] ## not x == 5 ## x if t else 1 ## 1 if false ## 1 if false else 2 if false else 3 ## (1 if false) is defined
"a" ~ 1 ~ none ~ 2.0 ~ [1] ## "a" + "b" ## "a" + 1 ## [1] + [2] ## (1,) + (2,) ## "ab" * 3 ## [0] * 2 ## 2 * "x" ## "x" * -1 ## -"a" ## +x ## -f ## - -x
l ## d ## words ## (1, 2) ## (1,) ## () ## [] ## {} ## {"a": 1, 2: [none, true, 1.5]} ## "it's" ## ["it's", 'say "hi"', q] ## [uni, "\x00\x7f\u200b\u00a0\ud7ff"] ## true ## none ## None ## True ## false
nope ## nope.x ## nope[0] ## nope() ## nope + 1 ## nope == none ## nope == nope2 ## nope|length ## nope ~ "x" ## [nope] ## d.nope ## d.nope.x ## d["nope"] ## n.x ## n.x.y ## x.y ## l.x ## l[10] ## l[-1] ## l[-4] ## l["a"] ## s[0] ## s[-1] ## s[99] ## uni[1] ## uni[2] ## l[1.5] ## l[true]
d.a ## d["a"] ## d.items ## d["items"] ## d.items()|list ## d.keys()|list ## d.values()|list ## d.items() ## d.keys() ## d.get("a") ## d.get("zz") ## d.get("zz", 7) ## deep.a.b[0].c ## deep["a"]["b"][0]["c"] ## deep.a.b.0.c ## d.items is defined ## d.keys is callable ## l.append(1) ## d.update({}) ## d.pop("a") ## d.__class__ ## s.__class__ ## ("").__class__ is defined ## l.append is defined
s[1:] ## s[:-1] ## s[::-1] ## s[1:5:2] ## s[::2] ## s[-3:] ## s[5:2] ## s[5:2:-1] ## uni[::-1] ## uni[1:3] ## l[1:] ## l[::-1] ## l[:] ## l[-2:] ## l[5:] ## l[::0] ## n[1:] ## d[1:] ## nope[1:] ## (1,2,3)[1:] ## l[none:none] ## l["a":] ## range(10)[2:8:3]|list ## range(5)[-1] ## s[100:200] ## l[-100:100]
range(3)|list ## range(3) ## range(1, 10, 3)|list ## range(5, 0, -2)|list ## range(0) ## range(3)|length ## range(1000000) ## range("a") ## range(2)|join ## 3 in range(5) ## range(3)|sum ## range(1, 3) ## range(1, 9, 2)
dict(a=1, b=2) ## dict({"x": 1}, y=2) ## dict([(1, 2)]) ## dict([("a", 1)], a=2) ## namespace(a=1).a ## namespace(a=1) ## namespace(_a=1) ## namespace({"k": 2}).k ## namespace().x is defined
"a\nb\t\x41\u00e9\'\"\\\d" ## 'a' 'b' "c" ## "\101\7" ## "a\
b" ## "\é\日" ## "😀\U0001F600"
x is defined ## nope is defined ## nope is undefined ## n is none ## x is none ## x is number ## t is number ## f is float ## t is integer ## x is integer ## s is string ## l is sequence ## s is sequence ## d is sequence ## d is mapping ## l is mapping ## l is iterable ## x is iterable ## nope is iterable ## nope is sequence ## t is boolean ## t is true ## x is true ## 0 is false ## false is false
4 is even ## 3 is odd ## 9 is divisibleby 3 ## 9 is divisibleby(2) ## x is eq 5 ## x is equalto 6 ## x == 5 is true ## x is ne 4 ## x is gt 4 ## x is lt(4) ## x is ge 5 ## x is le 4 ## x is sameas 5 ## t is sameas true ## 1 is in [1, 2] ## 5 is not in [1] ## x is not defined ## x is not none and t ## "abc" is lower ## "ABC" is upper ## "aB" is lower ## "1" is upper ## "upper" is filter ## "nofilter" is filter ## "odd" is test ## "a" is escaped ## x is greaterthan 3 ## x is lessthan 3 ## x is "eq" ## range is callable ## d.keys() is sequence ## d.keys() is iterable ## range(2) is sequence ## (l|map("string")) is iterable ## (l|map("string")) is sequence ## x is odd is even
s|upper ## s|lower ## s|title ## s|capitalize ## "straße ﬁ ß"|upper ## "ΑΣ ΣΑ"|lower ## "foo-bar (baz) it's"|title ## "ǆ x"|title ## "  a b "|trim ## "xxaxx"|trim("x") ## 5|trim ## n|upper ## nope|upper ## nope|trim ## none|trim ## s|length ## uni|length ## d|length ## x|length ## n|length ## s|count
s|replace("l", "L") ## s|replace("l", "L", 1) ## s|replace("", "-") ## s|replace("zz", "-") ## 515|replace(5, "x") ## s|replace("l") ## s|first ## s|last ## l|first ## l|last ## []|first ## []|last ## e|first ## uni|first ## uni|last ## d|first ## d|last ## nope|first ## nope|last ## nope|list ## s|list ## d|list ## x|list ## l|list
l|join ## l|join(", ") ## words|join("-") ## users|join(", ", attribute="name") ## [1, none, true, [2]]|join("|") ## "abc"|join("-") ## nope|join ## x|join ## l|join(1) ## d|join(",") ## [e, e]|join("x")
l|sort ## words|sort ## words|sort(case_sensitive=true) ## words|sort(reverse=true) ## users|sort(attribute="age")|map(attribute="name")|join(" ") ## users|sort(attribute="age,name")|map(attribute="name")|list ## users|sort(attribute="age", reverse=true)|map(attribute="name")|list ## [1, "a"]|sort ## [3, 1.5, true]|sort ## nope|sort ## "cab"|sort ## d|sort ## [[2, 1], [1, 2], [1]]|sort ## users|sort(attribute="on")
words|unique|list ## words|unique(true)|list ## users|unique(attribute="age")|map(attribute="name")|list ## [1, 1.0, true, "1"]|unique|list ## [[1]]|unique|list
l|reverse|list ## s|reverse ## uni|reverse ## (1, 2)|reverse|list ## d|reverse|list ## x|reverse ## (l|map("string"))|reverse ## nope|reverse|list ## l|reverse|first
l|map("string")|list ## words|map("upper")|join(",") ## words|map("replace", "p", "b")|list ## users|map(attribute="name")|list ## users|map(attribute="on")|list ## users|map(attribute="on", default="no")|list ## users|map(attribute="age")|sum ## nope|map("upper")|list ## x|map("upper")|list ## [[1, 2], [3]]|map("length")|list ## users|map("nofilter")|list ## [[1,2],[3,4]]|map(attribute=0)|list ## [deep]|map(attribute="a.b.0.c")|list ## [3, 4]|map("pprint_no")|list ## users|map(attribute="x.y")|list ## [1]|map("default", 5)|list ## (l|map("string"))|length ## (l|map("string"))[0] is defined ## (l|map("string")) and 1 ## (l|map("string"))|last
l|select("odd")|list ## l|reject("odd")|list ## [0, 1, e, "a", none]|select|list ## [0, 1, e, "a", none]|reject|list ## l|select("gt", 1)|list ## words|select("in", ["fig"])|list ## users|selectattr("on")|map(attribute="name")|list ## users|rejectattr("on")|map(attribute="name")|list ## users|selectattr("age", "equalto", 30)|map(attribute="name")|list ## users|selectattr("on", "defined")|list|length ## users|selectattr("age", "lt", 30)|first ## users|selectattr("nope", "defined")|list ## l|select("divisibleby", 3)|list ## users|selectattr ## users|selectattr("age", "notest")|list ## nope|selectattr("a")|list ## l|select("==", 3)|list ## (users|selectattr("zz")|list) == [] ## users|selectattr("name", "in", ["Bo"])|map(attribute="age")|first
d|items|list ## nope|items|list ## l|items|list ## d|dictsort ## {"B": 1, "a": 2, "C": 0}|dictsort ## {"B": 1, "a": 2, "C": 0}|dictsort(true) ## {"B": 1, "a": 2}|dictsort(by="value") ## {"B": 1, "a": 2}|dictsort(reverse=true) ## {"B": 1}|dictsort(by="x") ## l|dictsort
"a\nb\n\nc"|indent ## "a\nb\n\nc"|indent(2, true) ## "a\nb\n\nc"|indent(2, blank=true) ## "a\nb"|indent(">>") ## "a\n"|indent ## ""|indent ## "a\r\nb"|indent(1) ## 5|indent ## nope|indent ## "a\nb"|indent(width=1, first=True)
"42"|int ## "42.7"|int ## "x"|int ## "x"|int(9) ## 4.9|int ## -4.9|int ## "0x1f"|int(0, 16) ## "ff"|int(base=16) ## none|int ## true|int ## " 7 "|int ## "1_0"|int ## l|int ## nope|int ## ""|int ## "1e3"|int ## "2.5"|float ## "x"|float ## "x"|float(1.5) ## 3|float ## " 1e3 "|float ## "inf"|float ## "nan"|float ## none|float ## "0x10"|float ## "1_0.5"|float ## nope|float
2.5|round ## 3.5|round ## 2.567|round(2) ## 2.5|round(0, "ceil") ## 2.5|round(0, "floor") ## 42.55|round(1, "floor") ## 5|round ## -2.5|round ## 1234.5|round(-2) ## "a"|round ## 2.675|round(2) ## 5|round(2) ## 2.1|round|int ## 1.005|round(2) ## 3|round(0, "ceil") ## -5|abs ## -2.5|abs ## "a"|abs ## true|abs
l|sum ## [1.5, 2]|sum ## users|sum(attribute="age") ## []|sum ## [[1], [2]]|sum(start=[]) ## ["a"]|sum ## l|min ## l|max ## words|min ## words|max ## []|min ## users|max(attribute="age") ## users|min(attribute="name") ## [1, "a"]|max ## words|min(true) ## nope|max
nope|default("d") ## n|default("d") ## n|default("d", true) ## e|d("x", boolean=true) ## nope|default ## d.zz|default(1) ## s|default("y") ## nope.a|default("z") ## x|string ~ "!" ## 1.0|string ## l|string ## n|string ## nope|string ## d|string
"<a href='x'>&"|escape ## "<b>"|e|e ## "<b>"|safe|escape ## "<b>"|forceescape ## ("<b>"|e) ~ "<i>" ## ("<b>"|e) + "<i>" ## "<i>" + ("<b>"|safe) ## x|safe ## "<"|e|upper ## "<"|safe|length ## [("<"|e)]|join("<") ## "<b>"|safe|forceescape ## ["a"|safe] ## "a"|e is escaped ## "a"|safe == "a"
"one two_three 4, é日"|wordcount ## "abc"|center(9) ## "abcd"|center(9) ## "abc"|center(2) ## "foo bar baz qux"|truncate(9) ## "foo bar baz qux"|truncate(9, true) ## "foo bar baz qux"|truncate(11) ## "foo bar baz qux"|truncate(11, false, "...", 0) ## "foo"|truncate(2) ## range(7)|batch(3)|list ## range(7)|batch(3, "x")|list ## range(7)|slice(3)|list ## range(7)|slice(3, "-")|list ## []|batch(2)|list ## range(3)|slice(0)|list ## users|groupby("age")|list|length ## words|groupby(0)|map("first")|list ## users|groupby("on", default=false)|map("first")|list ## d|attr("keys") is defined ## d|attr("a") is defined ## s|attr("upper") is callable
{"a": [1, 2.5, "é<'\"\\\n\u0001/", none, true, {}]}|tojson ## d|tojson ## d|tojson(indent=2) ## [[], {}, [1], {"a": {"b": 1}}]|tojson(indent=4) ## uni|tojson(ensure_ascii=true) ## uni|tojson ## d|tojson(sort_keys=true) ## {"b": 1, "a": 2}|tojson(sort_keys=True, separators=(",", ":")) ## l|tojson(separators=(" ; ", "=")) ## (1, 2)|tojson ## nope|tojson ## range(3)|tojson ## {1: 2, none: 3, true: 4, 1.5: 5}|tojson ## {(1, 2): 3}|tojson ## "a\u2028\x7f"|tojson ## 1e100|tojson ## l|tojson(indent="\t") ## [1]|tojson(indent=0) ## d.items()|tojson ## (1.0, 1e-7)|tojson ## "\x00\x1f\b\f"|tojson ## l|tojson(2) ## l|tojson(false, 1) ## []|tojson(indent=2) ## ("<"|safe)|tojson
"%s-%d" % ("a", 5) ## "%s" % x ## "%5d|%-5d|%05d|%+d" % (1, 2, 3, 4) ## "%.2f %8.3f %e" % (1.005, 2.5, 12345.678) ## "%x %X %o %#x" % (255, 255, 8, 255) ## "%r %s" % ("a", none) ## "%%" % () ## "%(a)s" % {"a": 1} ## "%s %s" % (1,) ## "%s" % (1, 2) ## "%d" % "a" ## "%c" % "z" ## "%s"|format("x") ## "%s, %s!"|format("a", "b") ## "%(n)d"|format(n=3) ## "%10s|%-10s|" % ("é", "日") ## "%.3s" % "abcdef" ## "%g %g" % (0.0001, 1e20) ## "%d" % 3.7 ## "%s" % [1, 2] ## "%5.1f%%" % 99.95 ## "%i" % true
"{} {}".format(1, "a") ## "{1} {0}".format(1, 2) ## "{a}-{b}".format(a=1, b=2) ## "{0.a}".format(d) ## "{0[a]}".format(d) ## "{:>5}|{:<5}|{:^5}|".format("a", "b", "c") ## "{:05d} {:+d} {:,}".format(42, 7, 1234567) ## "{:.2f} {:8.3f} {:e}".format(1.005, 2.5, 12345.6789) ## "{{}}".format() ## "{}".format() ## "{!r} {!s}".format("a", 1) ## "{:x} {:#X} {:o}".format(255, 255, 8) ## "{:*^9}".format("mid") ## "{:.1%}".format(0.256) ## "{:.2}".format("abc") ## "{} {0}".format(1) ## "{x}".format(1) ## "{".format() ## "{0.__class__}".format(d)
s.upper() ## s.lower() ## "a b".title() ## "it's a dog's".title() ## "aBC".capitalize() ## "aBc".swapcase() ## "ß".casefold() ## " a ".strip() ~ "|" ## "xax".strip("x") ## "xyaxy".lstrip("xy") ## "xyaxy".rstrip("yx") ## "\n\n a\n".strip("\n") ## "a\u00a0\u3000".strip() ~ "|" ## " a".strip(none) ## "a".strip(1) ## "abc".startswith("ab") ## "abc".startswith(("x", "a")) ## "abc".startswith("b", 1) ## "abc".endswith("c") ## "abc".endswith("b", 0, 2) ## "abc".endswith(("b", "z")) ## "".startswith("") ## "abc".startswith("", 3) ## "abc".startswith("", 4) ## "a".startswith(1)
"a,b,,c".split(",") ## "a,b,c".split(",", 1) ## " a  b c ".split() ## " a  b c ".split(none, 1) ## "a b".split(maxsplit=0) ## "".split() ## "".split(",") ## "a".split("") ## "a,b,c".rsplit(",", 1) ## " a  b c ".rsplit(none, 1) ## "a--b--c".split("--") ## "aaa".split("aa") ## "aaa".rsplit("aa") ## "abc".split("b")[-1] ## "a</think>b".split("</think>")[-1].lstrip("\n") ## "日,本".split(",") ## "a".split(1) ## " a  b c ".rsplit() ## "a b c".rsplit(maxsplit=1)
"a\nb\r\nc\rd".splitlines() ## "a\nb\n".splitlines() ## "a\nb".splitlines(true) ## "".splitlines() ## "\n".splitlines() ## "a\u2028b\x0bc".splitlines() ## "a=b=c".partition("=") ## "a=b=c".rpartition("=") ## "abc".partition("x") ## "abc".rpartition("x") ## "-".join(["a", "b"]) ## "-".join([1]) ## ",".join("abc") ## "".join(words) ## ", ".join(users|map(attribute="name")) ## "-".join({"a": 1, "b": 2}) ## "-".join([])
"abcabc".find("c") ## "abcabc".find("c", 3) ## "abcabc".rfind("a") ## "abc".find("z") ## "日本".find("本") ## "abc".index("b") ## "abc".index("z") ## "abab".count("ab") ## "aaa".count("aa") ## "abc".count("") ## "abc".replace("b", "x") ## "aaa".replace("a", "b", 2) ## "abc".replace("", ".") ## "abc".replace("", ".", 2) ## "a".replace("a") ## "abc".removeprefix("a") ## "abc".removesuffix("bc") ## "abc".removesuffix("x") ## "5".zfill(3) ## "-5".zfill(4) ## "a".ljust(3) ~ "|" ## "a".rjust(3, "*") ## "ab".center(5, "-") ## "abc".center(6, "-") ## "12".isdigit() ## "1a".isdigit() ## "".isdigit() ## "²".isdigit() ## "²".isdecimal() ## "½".isnumeric() ## "ab".isalpha() ## "a1".isalnum() ## " \t".isspace() ## "ab".islower() ## "AB".isupper() ## "é".isascii() ## "a".nomethod() ## "Ab".islower() ## "日本".isalpha() ## "abc".find("b", -2) ## "abc".rindex("c")
l.count(1) ## l.index(2) ## l.index(9) ## (1, 1).count(1) ## l.copy() ## d.copy() == d ## [l, l] == [l, l[:]] ## l.clear() ## d.setdefault("q", 1) ## [1, 2].pop() ## d.get([]) ## {[]: 1} ## d.get("a", default=1)
strftime_now("%Y-%m-%d") ## strftime_now("%d %b %Y") ## strftime_now("%B %d, %Y") ## strftime_now("%H:%M:%S %A %j %%") ## raise_exception("boom") ## strftime_now() ## strftime_now("%-d %I %p %y %U")
(1, 2)[0] ## [1, 2][1] ## {"a": 1}.a ## "abc"[1] ## "abc".upper().lower()[0] ## (x) ## ((x)) ## [x, [x]][1][0] ## {"k": {"j": 1}}["k"]["j"] ## {"a": 1,} ## [1,] ## 1, 2 ## x, ## s.upper ()|lower ## - 1|abs ## -1|abs ## (-1)|abs ## 2 + 3|string ## 1 ~ 2 + 3 ## 1 + 2 ~ 3 ## "a" if x else "b" ~ "c" ## not 1 in [1] ## not (1 in [1]) ## 1 == 1 == 1 ## 1 < 2 == true ## x|default(1)|string|length ## x is defined and x > 3 ## [1 if t else 2, 3] ## {"a" ~ 1: 2} ## {1: "a", 1.0: "b", true: "c"} ## {"a": 1, "a": 2} ## d == d ## [none] == [none] ## 0.1 + 0.2 == 0.3 ## 9007199254740993 ## -5 ** 2 ## 10 ** 2 ** 0.5 ## (0 - 8) // 3 ## 8 // -3 ## -0.0 ## 1e22 ## 1e21 * 10 ## 100000000000000000000.0 ## 1.0e15 ## 12345.678e-10
s.upper(1) ## s.split(foo=1) ## s|upper(1) ## s|trim(chars="Hd") ## l|join(d="+") ## l|join(attribute=none) ## range(*[1, 4])|list ## dict(**{"a": 1}) ## "{}{}".format(*["a", "b"]) ## dict(a=1, **{"a": 2}) ## range(1, *[3])|list ## dict(*[[("k", 1)]]) ## l.index(*[1])
"""

STATEMENTS = [
    # white space
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}  \n  b\n  {% endif %}\nc", "  {{ x }}  \n  {{ x }}\n", "a {%- if true -%} b {%- endif -%} c",
    "a\n\n{%- if true %}\n\nb{% endif -%}\n\n c", "a {%+ if true %} b {% endif %} c", "  {%+ if true %}x{% endif %}", "{% if true +%}\nx{% endif %}", "{% if true %}\n\nx\n\n{% endif %}\n\n",
    "a {#- c -#} b", "a\n  {# c #}\nb", "a {# c #}\n b", "  {#- c #}\nx", "{# a\nb #}\n\nx", "{# {{ x }} {% if %} #}y", "x {#+ c +#}\n y", "{{- x -}}", " {{- x -}} ", "a\n{{- x -}}\nb", "a {{+ x }} b", "{{ -x }}", "{{-x}}", "{{- -x }}",
    "a\t {% set y = 1 %}\t\nb", "a\n\t {% set y = 1 %}\nb", "x{% set y = 1 %}\n\ny", "{% raw %}{{ x }} {% if %}{% endraw %}", "a\n  {% raw %}\n  {{ x }}\n  {% endraw %}\nb", "a {%- raw -%} {{ x }} {%- endraw -%} b", "{% raw -%}\n  x{% endraw +%}\ny", "{% raw %}{# c #}{% endraw %}",
    "\n", "\n\n", "", "a\n", "a\r\nb\rc\n", "{{ 'a\r\nb' }}", "{% if true %}\r\nx\r\n{% endif %}\r\n", "  {% if true %}x{% endif %}  {% if true %}y{% endif %}\n", "{{ x }}\n{{ x }}\n\n", "{% for i in l %}\n  {{ i }}\n{% endfor %}\n", "{% for i in l -%}\n  {{ i }}\n{%- endfor %}", "{%for i in l%}{{i}}{%endfor%}",
    "\u00a0{% if true %}x{% endif %}", "a\n\u00a0{% if true %}x{% endif %}", "a \u3000{%- if true %}x{% endif %}", "{% if true -%}\u2003x{% endif %}", "{ { x } } {x} {", "{{ '}}' }}", "{{ '%}' }}", "{% if '%}' %}x{% endif %}", "{{ {'a': {'b': 1}} }}", "{{ {'a': 1}['a'] }}",
    "{{ x }", "{{ x", "{% if x %}", "{% endif %}", "{% if %}x{% endif %}", "{% foo %}", "{% else %}", "{# x", "{% raw %}x", "{{ }}", "{{ 'a }}", "{{ x y }}", "{{ (x }}", "{{ x) }}", "{{ [x) }}", "{{ x. }}", "{{ x..y }}", "{{ x[ }}", "{{ | upper }}", "{{ x | }}", "{{ x is }}", "{{ 1 2 }}", "{{ x ? y }}", "{{ x! }}", "{{ $ }}", "{{ 1a }}", "{{ a-b }}", "{{ x if }}", "{% set %}", "{% set 1 = 2 %}", "{% set true = 2 %}", "{% for %}{% endfor %}", "{% for i in %}{% endfor %}", "{% for 1 in l %}{% endfor %}", "{% if x %}a{% endfor %}", "{% macro %}{% endmacro %}", "{% macro f(a b) %}{% endmacro %}", "{% macro f(a=1, b) %}{% endmacro %}", "{{ f(a=1, 2) }}", "{{ f(**d, 1) }}", "{% break %}", "{% for i in l %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}", "{{ not }}", "{{ 1 + }}", "{{ 1 not 2 }}", "{{ x is not }}", "{{ {1} }}", "{{ {1: } }}", "{{ [,] }}", "{{ (,) }}", "{{ ; }}",
    # if, for
    "{% if x %}a{% elif t %}b{% else %}c{% endif %}", "{% if n %}a{% elif t %}b{% else %}c{% endif %}", "{% if n %}a{% elif e %}b{% else %}c{% endif %}", "{% if n: %}a{% else: %}c{% endif %}", "{% if x, %}t{% endif %}", "{% if nope %}a{% elif nope.x %}b{% endif %}", "{% if n %}1{% elif n %}2{% elif n %}3{% elif x %}4{% elif x %}5{% endif %}",
    "{% for i in l %}{{ i }}{% else %}none{% endfor %}", "{% for i in [] %}{{ i }}{% else %}none{% endfor %}", "{% for i in nope %}{{ i }}{% else %}none{% endfor %}", "{% for i in x %}{% endfor %}", "{% for i in n %}{% endfor %}", "{% for k in d %}{{ k }},{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|items %}{{ loop.index }}{{ k }}{% endfor %}", "{% for c in uni %}{{ c }}|{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a in 1, 2, 3 %}{{ a }}{% endfor %}", "{% for a, in [[1]] %}{{ a }}{% endfor %}",
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}", "{% for i in l %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}", "{% for i in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}", "{% for i in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{% endfor %}", "{% for i in l %}{{ loop }}{% endfor %}", "{% for i in l %}{{ loop.nope }}{% endfor %}", "{% for i in l %}{{ loop.previtem.x }}{% endfor %}", "{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{{ loop }}", "{{ loop.index }}", "{% for i in l %}{% endfor %}{{ i }}", "{% for i in l %}{% for j in [1] %}{{ loop.last }}{% endfor %}{% endfor %}",
    "{% for i in l if i > 1 %}{{ i }}{{ loop.length }}{% endfor %}", "{% for i in l if i > 9 %}{{ i }}{% else %}no{% endfor %}", "{% for u in users if u.on %}{{ u.name }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in l %}{% break %}{% else %}e{% endfor %}", "{% for i in l %}{% continue %}{% else %}e{% endfor %}", "{% for i in l %}{{ i }}{% if i == 1 %}{% break %}{% endif %}{% else %}e{% endfor %}", "{% for i in l %}{% for j in l %}{% break %}{% endfor %}{{ i }}{% endfor %}", "{% for i in l %}{% set z %}a{% break %}{% endset %}{% endfor %}|{{ z }}", "{% for i in range(3) %}{{ i }}{% endfor %}", "{% for i in l|sort %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}", "{% for i in (l|map('string')) %}{{ loop.length }}{{ i }}{% endfor %}",
    # set and scope
    "{% set y = 1 %}{{ y }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = l %}", "{% set y = 1, 2 %}{{ y }}", "{% set y %}a{{ x }}b{% endset %}[{{ y }}]", "{% set y | upper %}a{{ x }}b{% endset %}[{{ y }}]", "{% set y | replace('a', 'b') | upper %}aa{% endset %}{{ y }}", "{% set ns = namespace(n=0) %}{% for i in l %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "{% set n2 = 0 %}{% for i in l %}{% set n2 = n2 + i %}{{ n2 }}{% endfor %}{{ n2 }}", "{% set d.z = 1 %}", "{% set nope.z = 1 %}", "{% set ns = namespace() %}{% set ns.a %}blk{% endset %}{{ ns.a }}", "{% set ns = namespace() %}{% set ns._a = 1 %}", "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}", "{% if true %}{% set y = 1 %}{% endif %}{{ y }}", "{% if false %}{% set x = 1 %}{% endif %}{{ x }}", "{% for i in l %}{% set x = i %}{% endfor %}{{ x }}", "{% set x = x + 1 %}{{ x }}", "{% set x = 1 %}{% set x = x + 1 %}{{ x }}", "{% for i in l %}{{ x }}{% set x = i %}{% endfor %}", "{% for i in [1, 2] %}{{ x }}{% endfor %}{% set x = 9 %}{{ x }}", "{% for i in [1] %}{{ x }}{% endfor %}{% if t %}{% set x = 9 %}{% endif %}{{ x }}", "{% for i in [1, 2] %}{% for j in [1] %}{{ x }}{% endfor %}{% set x = i %}{% endfor %}", "{{ x }}{% for i in [1] %}{{ x }}{% endfor %}{% set x = 9 %}", "{% set range = 5 %}{{ range }}", "{% for i in [1] %}{{ range(2)|list }}{% endfor %}{% set range = 5 %}",
    "{% with a = 1, b = x %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}|{{ q == 1 }}", "{% with a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{% endwith %}", "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aaa{% endfilter %}", "{% filter trim %}  {% set k = 1 %}x {% endfilter %}{{ k }}", "{% generation %}a{{ x }}{% endgeneration %}", "{% generation %}{% set g = 1 %}{% endgeneration %}{{ g }}", "{%- generation -%}\n a \n{%- endgeneration -%}\n b", "{% for i in l %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "{% print 1, 'a' %}", "{% print x %}", "{% set x %}{% endset %}[{{ x }}]", "{% set a = b = 1 %}", "{% set y = x if nope else 'z' %}{{ y }}", "{% set a = [] %}{% set a = a + [1] %}{{ a }}", "{% set _ = l.append(1) %}",
    # macros
    "{% macro f(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, 3) }} {{ f(b=1, a=0) }} {{ f() }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(z=2) }}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, z=3) }}", "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}", "{% macro f() %}{{ x }}{% endmacro %}{{ f() }}", "{% macro f() %}{{ y }}{% endmacro %}{% set y = 7 %}{{ f() }}", "{% macro f() %}{% set x = 1 %}{{ x }}{% endmacro %}{{ f() }}{{ x }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{{ f(1) }}{% macro f(a) %}{{ a }}{% endmacro %}", "{% macro f(a) -%}\n  {{ a }}\n{%- endmacro %}[{{ f(1) }}]", "{% macro f() %}a{% endmacro %}{{ f()|upper }}{{ f() ~ 'x' }}{{ f() == 'a' }}", "{% macro f(a=nope) %}{{ a is defined }}{% endmacro %}{{ f() }}", "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}", "{% macro f() %}{{ caller() }}!{% endmacro %}{% call f() %}hi{{ x }}{% endcall %}", "{% macro f() %}{{ caller(1, 2) }}!{% endmacro %}{% call(a, b) f() %}{{ a }}{{ b }}{% endcall %}", "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}", "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}", "{% macro f(caller) %}{{ caller }}{% endmacro %}{{ f(3) }}", "{% macro f() %}{{ f.name }}{% endmacro %}{{ f() }}", "{% for i in l %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}", "{% macro a() %}{% macro b() %}in{% endmacro %}{{ b() }}{% endmacro %}{{ a() }}", "{% macro f(x) %}{% for i in x %}{{ i }}{% endfor %}{% endmacro %}{{ f(l) }}", "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 3, 'b': 4}) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}", "{% macro f() %}{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}{% endmacro %}{{ f() }}", "{% set f = 1 %}{{ f() }}", "{{ x() }}", "{{ s() }}", "{% macro f(a) %}{{ a.b }}{% endmacro %}{{ f() }}", "{% macro f(a) %}{{ loop.index }}{% endmacro %}{% for i in l %}{{ f(i) }}{% endfor %}", "{% call nope() %}x{% endcall %}", "{% call x %}y{% endcall %}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ [1, 2]|map('string')|map('upper')|join(f('-')) }}",
    "{{ raise_exception('no') }}", "{% if false %}{{ raise_exception('no') }}{% endif %}ok", "{{ x.foo.bar }}", "{% for i in d.nope %}{{ i }}{% endfor %}ok", "{% for i in d.nope.x %}{{ i }}{% endfor %}", "{{ d.nope ~ d.nope }}", "{{ d.nope + 'a' }}", "{{ 'a' + d.nope }}", "{{ d.nope and d.nope.x }}", "{{ d.nope or 'z' }}", "{{ d.nope is not none }}", "{{ d.nope|trim }}", "{{ d.nope|tojson }}", "{{ d.nope in [1] }}", "{{ 1 in d.nope }}", "{{ d.nope < 1 }}", "{{ d.nope == 1 }}", "{{ -d.nope }}", "{{ d.nope|default({})|length }}", "{{ d['a'][0] }}{{ d.a.1 }}", "{{ d.get('a')[1] }}", "{{ messages }}", "{{ x.real }}" if False else "{{ x }}",
]


def snippets():
    out = [f"{{{{ {e.strip()} }}}}" for line in EXPRESSIONS.strip().replace("\\\nb", "\\\0b").split("\n") for e in line.replace("\\\0b", "\\\nb").split(" ## ")]
    return out + STATEMENTS


def main():
    texts = conversations()
    (DATA / "conversations.json").write_text(json.dumps(texts, ensure_ascii=False) + "\n")
    for path in sorted(DATA.glob("*.jinja")):
        lines, out = {}, []
        for v in texts:
            text = render(path.read_text(), v)
            out.append(None if text is None else [lines.setdefault(s, len(lines)) for s in text.split("\n")])
        (DATA / (path.stem + ".json")).write_text(json.dumps({"lines": list(lines), "out": out}, ensure_ascii=False) + "\n")
        print(f"{path.stem}: {sum(o is not None for o in out)} rendered, {sum(o is None for o in out)} refused")
    rows = [[t, render(t, VARS)] for t in snippets()]
    rows = [r for r in rows if r[1] is None or " at 0x" not in r[1]]
    (DATA / "snippets.json").write_text(json.dumps({"vars": VARS, "rows": rows}, ensure_ascii=False, indent=0) + "\n")
    print(f"snippets: {len(rows)}, {sum(r[1] is None for r in rows)} refused")


if __name__ == "__main__":
    main()
