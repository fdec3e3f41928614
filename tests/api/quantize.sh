#!/bin/sh
# `impetus quantize` from the outside: files that load and answer, reports, refusals, full disks. Prints TAP.
# usage: BUILD=build sh tests/api/quantize.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
I=$PWD/${BUILD:-build}/impetus
case ${BUILD:-build} in /*) I=$BUILD/impetus ;; esac
M=$PWD/models/stories260K.gguf
NANO=$PWD/models/impetus-nano.gguf
T=$(mktemp -d) || exit 1
trap 'rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" XDG_DATA_HOME="$T/data" HOME="$T"
n=0
check() { # NAME COMMAND...
    n=$((n + 1)); name=$1; shift
    if "$@"; then echo "ok $n - $name"; else echo "not ok $n - $name"; cat "$T/out" "$T/err" 2>/dev/null | tail -5 | sed 's/^/# /'; fi
}
it() { "$I" "$@" >"$T/out" 2>"$T/err" </dev/null; rc=$?; }
fails() { # CODE WORDS ARGUMENT...: one line with WORDS on stderr, nothing on stdout, no file left behind
    code=$1; words=$2; shift 2
    it "$@"
    fine=1
    [ "$rc" -eq "$code" ] && [ ! -s "$T/out" ] && [ "$(wc -l <"$T/err")" -eq 1 ] && grep -qF -- "$words" "$T/err" || fine=0
    [ ! -e "$T/no.gguf" ] && [ ! -e "$T/no.gguf.tmp" ] || fine=0
    check "$code: $words" test $fine -eq 1
}
bytes() { wc -c <"$1" | tr -d ' '; }
# number KEY FILE: the first value of a key in JSON
number() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" "$2" | head -1; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }

# ---- every type loads and says nearly the same; fewer bits say it less exactly
for i in 1 2 3 4; do "$I" run "$M" "Once upon a time" --raw --seed $i -n 200 -q; done >"$T/text" 2>/dev/null
last=0
for t in f16 q8_0 q5_1 q4_1; do
    it quantize "$M" "$T/$t.gguf" --type $t
    check "$t is written" test $rc -eq 0
    it perplexity "$T/$t.gguf" "$T/text" --ctx 64 --windows 6 --against "$M" --json -q
    kl=$(number kl_mean "$T/out")
    check "$t: KL $kl, more than the type before" less "$last" "${kl:-0}"
    last=${kl:-9}
done
check "q4_1: KL below 0.3" less "$last" 0.3
check "a smaller file" less "$(bytes "$T/q4_1.gguf")" "$(bytes "$T/q8_0.gguf")"
it run "$T/q8_0.gguf" "Once upon a time" -n 20 --temp 0 --raw
check "q8_0 tells the story" grep -q ', there was a little girl named' "$T/out"
it check "$T/q4_1.gguf"
check "impetus check finds nothing wrong" test $rc -eq 0

# ---- rows that are no whole blocks are said, in the text and in the report
it quantize "$M" "$T/k.gguf" --type q4_k --report "$T/report.json"
check "a type that does not fit the rows is said" grep -qF 'is q4_1: its rows are no whole blocks' "$T/out"
check "and stands in the report" grep -qF '"fallback": "its rows are no whole blocks of the type asked for"' "$T/report.json"
it run "$T/k.gguf" "Once upon a time" -n 5 --temp 0 --raw
check "the file loads" test $rc -eq 0
it quantize "$M" "$T/q4_0.gguf" --type q4_0
check "what falls back to f16 is said" grep -qF 'is f16: its rows are no whole blocks' "$T/out"

# ---- calibration makes the error that counts smaller
it quantize "$M" "$T/w.gguf" --type q4_1 --calibration "$T/text" --json
cp "$T/out" "$T/weighted.json"
check "calibration is used" grep -q '"weighted_error": 0' "$T/weighted.json"
it perplexity "$T/w.gguf" "$T/text" --ctx 64 --windows 6 --against "$M" --json -q
check "and lowers the divergence ($(number kl_mean "$T/out") from $last)" less "$(number kl_mean "$T/out")" "$last"

# ---- a quantised model as the source
it quantize "$NANO" "$T/nano.gguf" --type q8_0 -q
check "matrices widen" test $rc -eq 0
it quantize "$T/nano.gguf" "$T/nano4.gguf" --type q4_k --report "$T/report.json" --json
check "57 tensors change back" grep -q '"changed": 57' "$T/out"

# ---- refusals
fails 2 "--type is missing" quantize "$M" "$T/no.gguf"
fails 2 "'q9_9' is none of" quantize "$M" "$T/no.gguf" --type q9_9
fails 2 "'iq4_xs' is none of" quantize "$M" "$T/no.gguf" --type iq4_xs
fails 1 "are the same file" quantize "$T/q8_0.gguf" "$T/q8_0.gguf" --type q4_0
ln -s "$T/q8_0.gguf" "$T/link.gguf"
fails 1 "are the same file" quantize "$T/q8_0.gguf" "$T/link.gguf" --type q4_0
fails 1 "is a folder; give the name of a file" quantize "$M" "$T" --type q4_0
fails 1 "cannot create" quantize "$M" "$T/nowhere/no.gguf" --type q4_0
fails 1 "there is no file or folder" quantize "$T/missing.gguf" "$T/no.gguf" --type q4_0
printf GGUF >"$T/cut.gguf"
fails 1 "truncated" quantize "$T/cut.gguf" "$T/no.gguf" --type q4_0
: >"$T/empty"
fails 1 "a calibration text needs" quantize "$M" "$T/no.gguf" --type q4_0 --calibration "$T/empty"
# NaN in a matrix: f32 data of the story model, its last bytes
cp "$M" "$T/nan.gguf"
offset=$(($(bytes "$M") - 400000))
printf '\377\377\377\177' | dd of="$T/nan.gguf" bs=1 seek=$((offset - offset % 4)) conv=notrunc 2>/dev/null
fails 1 "that are no numbers" quantize "$T/nan.gguf" "$T/no.gguf" --type q4_0
if [ -w /dev/full ]; then
    ln -s /dev/full "$T/full.gguf.tmp"
    it quantize "$M" "$T/full.gguf" --type q8_0
    check "a full disk is said" grep -q "No space left on device" "$T/err"
    check "and leaves no file" test $rc -eq 1 -a ! -e "$T/full.gguf" -a ! -L "$T/full.gguf.tmp"
fi
# a process that may write 100 kB only
(ulimit -f 100; trap '' XFSZ; "$I" quantize "$M" "$T/no.gguf" --type q8_0 >"$T/out" 2>"$T/err")
check "a file that may not grow is said" grep -q "cannot write" "$T/err"
check "nothing is left" test ! -e "$T/no.gguf" -a ! -e "$T/no.gguf.tmp"
it quantize "$M" "$T/q8_0.gguf" --type q8_0
check "an older file is replaced" test $rc -eq 0
# ---- a mix: every part its own type, within a budget that is measured
it quantize "$M" "$T/mix.gguf" --type mixed --max-kl 0.01 --goal size --json
cp "$T/out" "$T/mix.json"
check "a mix is written" test $rc -eq 0
check "its parts are listed" grep -q '"part": "ffn down, layers 0-1"' "$T/mix.json"
kl=$(sed -n '/"mix": {/,/}/s/.*"kl": *\([-0-9.e]*\).*/\1/p' "$T/mix.json")
check "its measured divergence $kl keeps to 0.01" less "${kl:-1}" 0.010000001
it perplexity "$T/mix.gguf" "$T/text" --ctx 64 --windows 6 --against "$M" --json -q
check "the file's own, on another text: $(number kl_mean "$T/out")" less "$(number kl_mean "$T/out")" 0.02
check "smaller than q8_0" less "$(bytes "$T/mix.gguf")" "$(bytes "$T/q8_0.gguf")"
it quantize "$M" "$T/mix2.gguf" --type mixed --max-kl 0.01 --goal size --json
check "the same again gives the same bytes" cmp -s "$T/mix.gguf" "$T/mix2.gguf"
check "and what was measured is remembered" less "$(number measurements "$T/out")" "$(number measurements "$T/mix.json")"
it quantize "$M" "$T/ane.gguf" --type mixed --max-kl 0.01 --device sim:apple-m4/ane --json
check "a neural engine gets other types" grep -q '"simulated": "SIMULATED"' "$T/out"
check "no super-blocks, no minima" sh -c "! grep -qE '\"type\": \"q([0-9]_k|[45]_1)\"' '$T/out'"
it plan "$M" --mixed --max-kl 0.05 --calibration "$T/text"
check "plan --mixed shows parts" grep -q 'attention v, layers' "$T/out"
check "and the mix beside uniform types" grep -q 'the mix, measured' "$T/out"
it plan "$M" --mixed --assume apple-m4 --json
check "for a published machine" grep -q '"device": "apple-m4/' "$T/out"
fails 1 "makes embeddings" quantize models/impetus-nano-embed.gguf "$T/no.gguf" --type mixed
fails 2 "--max-kl" quantize "$M" "$T/no.gguf" --type mixed --max-kl 0
fails 2 "--goal" plan "$M" --mixed --goal small
fails 1 "tokens; at least" quantize "$M" "$T/no.gguf" --type mixed --calibration "$T/empty"
echo "1..$n"
