#!/bin/sh
# `impetus render` from the outside, and a chat with a model that brings its own template. Prints TAP.
# usage: BUILD=build sh tests/api/render.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
I=$PWD/${BUILD:-build}/impetus
case ${BUILD:-build} in /*) I=$BUILD/impetus ;; esac
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" HOME="$T"
n=0
same() { # NAME WANT GOT
    n=$((n + 1))
    if [ "$2" = "$3" ]; then echo "ok $n - $1"; else echo "not ok $n - $1"; printf '%s\n' "want: $2" "got:  $3" | sed 's/^/# /'; fi
}
fails() { # CODE WORDS ARGUMENT...
    code=$1; words=$2; shift 2
    "$I" "$@" >"$T/out" 2>"$T/err" </dev/null
    rc=$?
    case $(cat "$T/err") in *"$words"*) found=1 ;; *) found=0 ;; esac
    same "$code: $words" "$code 1 0" "$rc $found $(wc -c <"$T/out" | tr -d ' ')"
}
Q=tests/data/templates/Qwen-Qwen3-0.6B.jinja
printf '{"messages":[{"role":"user","content":"Hi ü"}],"tools":null}' >"$T/chat.json"
WANT='<|im_start|>user
Hi ü<|im_end|>
<|im_start|>assistant'
same "a template file" "$WANT" "$("$I" render $Q "$T/chat.json" --generation-prompt)"
same "without the generation prompt" '<|im_start|>user
Hi ü<|im_end|>' "$("$I" render $Q "$T/chat.json")"
same "from standard input" "$WANT" "$("$I" render $Q - --generation-prompt <"$T/chat.json")"
same "as JSON" '{ "text": "<|im_start|>user\nHi ü<|im_end|>\n" }' "$("$I" render $Q "$T/chat.json" --json | tr -s ' \n' ' ' | sed 's/ *$//')"
printf '{"messages":[{"role":"user","content":"x"}],"greeting":"Moin"}' >"$T/other.json"
printf '{{ greeting }}, {{ messages[0].content }} {{ tools }} {{ add_generation_prompt }}' >"$T/own.jinja"
same "other keys are variables" "Moin, x None False" "$("$I" render "$T/own.jinja" "$T/other.json")"
printf '{%% for i in range(10**9) %%}x{%% endfor %%}' >"$T/bomb.jinja"
fails 1 "'range' has more than" render "$T/bomb.jinja" "$T/chat.json"
printf 'a\n{%% include "b" %%}' >"$T/include.jinja"
fails 1 "line 2: the tag 'include' is not supported" render "$T/include.jinja" "$T/chat.json"
fails 1 "has no chat template" render models/stories260K.gguf "$T/chat.json"
printf '[1]' >"$T/list.json"
fails 1 'has no "messages"' render $Q "$T/list.json"
printf '{"messages":' >"$T/cut.json"
fails 1 "is not valid JSON" render $Q "$T/cut.json"
fails 2 "" render $Q
echo "1..$n"
