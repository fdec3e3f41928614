#!/bin/sh
# The impetus command from the outside: golden text, exit codes, messages, JSON, signals. Prints TAP.
# usage: BUILD=build sh tests/api/cli.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
I=$PWD/${BUILD:-build}/impetus
case ${BUILD:-build} in /*) I=$BUILD/impetus ;; esac
M=$PWD/models/stories260K.gguf
GOLD=', there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.'
T=$(mktemp -d) || exit 1
SERVER=
cleanup() {
    [ -n "$SERVER" ] && kill -9 "$SERVER" 2>/dev/null
    rm -rf "$T"
}
trap cleanup EXIT
# Nothing of the user's own settings may reach the tests.
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" XDG_DATA_HOME="$T/data" HOME="$T"

n=0
ok() { n=$((n + 1)); echo "ok $n - $1"; }
no() { n=$((n + 1)); echo "not ok $n - $1"; [ $# -gt 1 ] && printf '%s\n' "$2" | sed 's/^/# /' | head -20; }
skip() { n=$((n + 1)); echo "ok $n - $1 # SKIP $2"; }
yes() { name=$1; shift; if "$@"; then ok "$name"; else no "$name" "$(tail -3 "$T/err" 2>/dev/null)"; fi; }

# run it: $T/out, $T/err, $rc
it() { "$I" "$@" >"$T/out" 2>"$T/err" </dev/null; rc=$?; }
# fails CODE WORDS ARGUMENT...: ends with CODE, writes nothing on stdout and one line with WORDS on stderr
fails() {
    code=$1; words=$2; shift 2
    it "$@"
    if [ "$rc" -eq "$code" ] && [ ! -s "$T/out" ] && [ "$(wc -l <"$T/err")" -eq 1 ] && grep -qF -- "$words" "$T/err"; then
        ok "$code: $words"
    else
        no "$code: $words (impetus $*)" "exit $rc, stderr: $(cat "$T/err")"
    fi
}
if command -v python3 >/dev/null 2>&1 && python3 -c 'import json' 2>/dev/null; then
    is_json() { python3 -c 'import json,sys; json.load(open(sys.argv[1]))' "$1" 2>/dev/null; }
    # holds FILE EXPRESSION: over the document d
    holds() { python3 -c 'import json,sys; d=json.load(open(sys.argv[1])); sys.exit(not eval(sys.argv[2]))' "$1" "$2" 2>"$T/err"; }
elif command -v jq >/dev/null 2>&1; then
    is_json() { jq . "$1" >/dev/null 2>&1; }
    holds() { :; }
else
    # brackets balance outside strings, and the document is one object
    is_json() {
        sed 's/\\.//g; s/"[^"]*"//g' "$1" | tr -cd '[]{}' | awk '{ s = s $0 }
            END { while (gsub(/\{\}|\[\]/, "", s)); exit s != "" }' && [ "$(head -c 1 "$1")" = "{" ]
    }
    holds() { :; }
fi
json() { # json NAME EXPRESSION ARGUMENT...: exit 0, one valid document on stdout for which the expression holds
    name=$1; expr=$2; shift 2
    it "$@" --json
    if [ "$rc" -eq 0 ] && is_json "$T/out" && holds "$T/out" "$expr"; then ok "$name"; else
        no "$name" "exit $rc; $(head -c 300 "$T/out"); $(head -c 300 "$T/err")"; fi
}

# ---- the main thing: the real model tells its story
it run "$M" "Once upon a time" -n 60 --temp 0 --raw
case $(cat "$T/out") in "$GOLD"*) ok "run continues the story" ;; *) no "run continues the story" "$(cat "$T/out" "$T/err")" ;; esac
yes "nothing on stderr without -v" test ! -s "$T/err"
cp "$T/out" "$T/story"
it run "$M" "Once upon a time" -n 60 --temp 0 --raw --threads 1
yes "the same with one thread" cmp -s "$T/out" "$T/story"
it run "$M" "Once upon a time" -n 60 --temp 0 --raw --step-tokens 2
yes "the same in steps of two tokens" cmp -s "$T/out" "$T/story"
printf 'Once upon a time' | "$I" run "$M" -n 60 --temp 0 --raw >"$T/out" 2>"$T/err"
yes "the same from standard input" cmp -s "$T/out" "$T/story"
it run "$M" "Once upon a time" -n 60 --temp 0 --raw --stop " One day"
yes "--stop ends before its text" test "$(cat "$T/out")" = ", there was a little girl named Lily. She loved to play outside in the park."
it run "$M" "Once upon a time" -n 40 --raw --seed 7
cp "$T/out" "$T/seed"
it run "$M" "Once upon a time" -n 40 --raw --seed 7
yes "a seed gives the same text again" cmp -s "$T/out" "$T/seed"
it run "$M" "Once upon a time" -n 5 --temp 0 --raw -v
yes "-v prints timings on stderr" grep -q 'answer 5 tokens' "$T/err"
json "run --json" 'd["usage"]["completion_tokens"]==5 and d["finish"]=="length" and d["text"].startswith(", there was")' \
    run "$M" "Once upon a time" -n 5 --temp 0 --raw

# ---- help
it help
yes "help lists the commands" test "$rc" -eq 0 -a "$(grep -cE '^  (serve|run|embed|tokenize|detokenize|logits|perplexity|bench|check|devices|plan|show) ' "$T/out")" -eq 12
it --version
yes "--version" grep -q '^impetus [0-9]' "$T/out"
bad=
for c in serve run embed tokenize detokenize logits perplexity bench check devices plan show; do
    it help $c
    [ "$rc" -eq 0 ] && grep -q "^usage: impetus $c" "$T/out" && grep -q -- --json "$T/out" || bad="$bad $c"
    cp "$T/out" "$T/help"
    it $c --help
    cmp -s "$T/out" "$T/help" || bad="$bad $c--help"
done
yes "help and --help of every command ($bad)" test -z "$bad"
it
yes "no command: help on stderr, exit 2" test "$rc" -eq 2 -a -s "$T/err" -a ! -s "$T/out"

# ---- wrong usage: exit 2, one line
fails 2 "did you mean 'serve'" srve
fails 2 "did you mean '--temp'" run "$M" x --tmep 0
fails 2 "unknown flag '--port'" run "$M" x --port 1
fails 2 "--temp needs a value" run "$M" x --temp
fails 2 "'hot' is not a number from 0 to 100" run "$M" x --temp hot
fails 2 "'101' is not a number" run "$M" x --temp=101
fails 2 "'nan' is not a number" run "$M" x --temp=nan
fails 2 "'0' is not a whole number from 1" run "$M" x -n 0
fails 2 "'99999999999999999999' is not a whole number" run "$M" x -n 99999999999999999999
fails 2 "'-3' is not a whole number" run "$M" x -n -3
fails 2 "'70000' is not a whole number from 0 to 65535" serve -m "$M" --port 70000
fails 1 'there is no device "tpu"' run "$M" x --device tpu
fails 2 "'2X' is not a size" run "$M" x --memory 2X
fails 2 "is not a list of whole numbers" bench "$M" -p 16,,32
fails 2 "'maybe' is neither yes nor no" run "$M" x --raw=maybe
fails 2 "an argument is missing" run
fails 2 "one argument too many" run "$M" a b
fails 2 "no model" serve --on-demand=no
fails 1 "is no time" serve -m "$M" --keep-alive soon
fails 1 "is not NAME=MODEL" serve -m "$M" --alias story
fails 1 "there is no folder" serve -m "$M" --models-dir "$T/no-such-folder"
fails 2 "is no token id" detokenize "$M" 1 two
fails 2 "not both" logits "$M" prompt --ids 1,2
fails 2 "cpu-mask" devices --cpu-mask nonsense

# ---- what cannot be done: exit 1, one line
fails 1 "there is no file or folder" run "$T/nothing.gguf" x
fails 1 "no model of that name" run nothing x
mkdir -p "$T/data/impetus/models" && cp "$M" "$T/data/impetus/models/mine.gguf"
it show mine
yes "a name finds the user's model" test "$rc" -eq 0
fails 1 "is not built yet" run hf:owner/name x
fails 1 "not a GGUF file" run "$PWD/README.md" x
fails 1 "has no config.json" run "$T" x
fails 1 "neither a file nor a folder" run /dev/null x
: >"$T/empty.gguf"
it run "$T/empty.gguf" x
yes "an empty file is refused in one line" test "$rc" -eq 1 -a "$(wc -l <"$T/err")" -eq 1
head -c 5000 "$M" >"$T/cut.gguf"
it run "$T/cut.gguf" x
yes "a truncated file is refused in one line" test "$rc" -eq 1 -a "$(wc -l <"$T/err")" -eq 1
fails 1 "cannot embed" embed "$M" x
fails 1 "not in the vocabulary" detokenize "$M" 512
fails 1 "less than one window" perplexity "$M" "$T/empty.gguf"

# ---- options from variables and files: flags win, then variables, then the file
TWO=', there'
it run "$M" "Once upon a time" --temp 0 --raw -n 2; TWO=$(cat "$T/out")
it run "$M" "Once upon a time" --temp 0 --raw -n 3; THREE=$(cat "$T/out")
it run "$M" "Once upon a time" --temp 0 --raw -n 4; FOUR=$(cat "$T/out")
mkdir -p "$T/cfg/impetus"
printf '; a comment\ntemp = 0\nraw = yes\nmax_tokens = 2\nport = 1\n' >"$T/cfg/impetus/config.ini"
out=$(XDG_CONFIG_HOME=$T/cfg "$I" run "$M" "Once upon a time" 2>&1)
yes "config.ini sets options" test "$out" = "$TWO"
out=$(XDG_CONFIG_HOME=$T/cfg IMPETUS_MAX_TOKENS=3 "$I" run "$M" "Once upon a time" 2>&1)
yes "a variable wins over the file" test "$out" = "$THREE"
out=$(XDG_CONFIG_HOME=$T/cfg IMPETUS_MAX_TOKENS=3 "$I" run "$M" "Once upon a time" -n 4 2>&1)
yes "a flag wins over both" test "$out" = "$FOUR"
printf 'max-tokens = 2\n[run]\nmax-tokens = 4\n[serve]\nport = 5\n' >"$T/sections.ini"
out=$("$I" run "$M" "Once upon a time" --temp 0 --raw --config "$T/sections.ini" 2>&1)
yes "a command's section wins over the general keys" test "$out" = "$FOUR"
printf '\n\ntempp = 1\n' >"$T/bad.ini"
fails 2 "line 3: unknown key 'tempp'; did you mean 'temp'" run "$M" x --config "$T/bad.ini"
printf 'temp = hot\n' >"$T/bad.ini"
fails 2 "line 1: temp: 'hot' is not a number" run "$M" x --config "$T/bad.ini"
printf 'what is this\n' >"$T/bad.ini"
fails 2 "line 1" run "$M" x --config "$T/bad.ini"
fails 2 "$T/none.ini" run "$M" x --config "$T/none.ini"
IMPETUS_TEMP=hot "$I" run "$M" x >"$T/out" 2>"$T/err"; rc=$?
yes "a wrong variable is named" test "$rc" -eq 2 -a "$(grep -c IMPETUS_TEMP "$T/err")" -eq 1

# ---- every command's JSON
json "tokenize --json" 'd["ids"]==[1,403,407,261,378] and len(d["pieces"])==5' tokenize "$M" "Once upon a time"
json "detokenize --json" 'd["text"]=="Once upon a time"' detokenize "$M" 403,407 261 378
it tokenize "$M" "Once upon a time" --ids --no-special
yes "tokenize --ids" test "$(cat "$T/out")" = "403 407 261 378"
text='Tom & "Jerry" <ran> 3 miles; äöü ☃ 漢字'
it tokenize "$M" "$text" --ids --no-special
ids=$(cat "$T/out")
# shellcheck disable=SC2086
it detokenize "$M" $ids
yes "any text survives tokenize and detokenize" test "$(cat "$T/out")" = "$text"
json "logits --json" 'd["ids"]==[1,403,407] and len(d["logits"])==3 and all(len(r)==512 for r in d["logits"])' logits "$M" --ids 1,403,407
json "the likeliest token of the logits is the one that run writes" 'd["logits"][-1].index(max(d["logits"][-1]))==432' \
    logits "$M" "Once upon a time"
json "show --json" 'd["arch"]=="llama" and d["vocab"]==512 and d["layers"]==5 and d["can_generate"]' show "$M"
json "devices --json" 'd["devices"][0]["kind"]=="cpu" and d["devices"][0]["cores"]>0 and d["devices"][0]["ceilings"]["read_gb_s"]>0 and d["devices"][0]["ceilings"]["int8_gop_s"]>0' devices
json "devices --no-measure measures nothing" 'd["devices"][0]["ceilings"] is None' devices --no-measure
it plan "$M" --memory 1MB
yes "a plan of what does not fit says so and exits with 1" test "$rc" -eq 1 -a -s "$T/out" -a "$(wc -l <"$T/err")" -eq 1
json "plan --json" 'd["fits"] and d["largest_ctx"]>=512 and d["memory"]["total"]==sum(d["memory"][k] for k in ("weights","kv","scratch","other")) and d["candidates"][d["chosen"]]["excluded"] is None and d["candidates"][0]["ttft_ms"]>0 and d["candidates"][0]["interval"][0]<d["candidates"][0]["interval"][1]' plan "$M"
cp "$T/out" "$T/plan"
json "plan says when a prompt is too long" 'd["chosen"] is None and "512" in d["candidates"][0]["excluded"]' plan "$M" --prompt 400 --gen 200
json "plan for a published machine is stamped" 'len(d["candidates"])==9 and all(c["simulated"]=="SIMULATED" for c in d["candidates"]) and d["chosen"] is not None' plan "$M" --assume apple-m3-max
fails 1 "devices --profiles" plan "$M" --assume apple-m99
json "calibrate keeps what it measured" 'd["devices"][0]["measured"]["bandwidth"]["value"]>0' calibrate --quick --database "$T/x/impetus.db" -t 1
json "plan starts from the calibration" 'd["calibrated"] and d["candidates"][0]["tpot_ms"]>0' plan "$M" --database "$T/x/impetus.db" -t 1
"$I" run "$M" "Once upon a time" -n 5 --database "$T/x/impetus.db" -t 1 >/dev/null 2>&1
json "explain tells what ran where" 'd["receipt"]["decode"]["device"]=="cpu0" and d["receipt"]["prefill"]["tokens"]>0 and d["candidates"][d["chosen"]]["excluded"] is None' explain last --database "$T/x/impetus.db"
mkdir -p "$T/npu/impetus"; echo "embeddings-on-npu = off" >"$T/npu/impetus/config.ini"
XDG_CONFIG_HOME="$T/npu" "$I" embed models/impetus-nano-embed.gguf "a cat" --device sim:apple-m3-max --database "$T/x/impetus.db" -t 1 >/dev/null 2>&1
json "a setting of the file rules units out, and explain says so" 'd["settings"]["embeddings_on_npu"]=="off" and all(c["excluded"]=="embeddings_on_npu is off" for c in d["candidates"] if c["prefill"]=="apple-m3-max/ane" and c["decode"]=="apple-m3-max/ane") and not d["receipt"]["embed"]["device"].endswith("ane")' explain last --database "$T/x/impetus.db"
fails 1 "not remembered" explain 99999999 --database "$T/x/impetus.db"
json "bench --json" 'set(d)=={"model","arch","type","bytes","device","threads","pp","tg","ceilings","share"} and d["pp"][0]["tokens"]==64 and d["pp"][0]["min"]<=d["pp"][0]["tok_s"]<=d["pp"][0]["max"] and [t["batch"] for t in d["tg"]]==[1,2] and d["share"]["decode_of_read"]>0' \
    bench "$M" -p 64 -n 8 -b 1,2 -r 2
json "check --json" 'd["ok"] and d["structure"] and len(d["tensors"])==47 and not d["problems"]' check "$M"
i=0; : >"$T/text"
while [ $i -lt 12 ]; do cat "$T/story" >>"$T/text"; i=$((i + 1)); done
json "perplexity --json, against itself" 'd["ctx"]==128 and d["tokens_scored"]==d["windows"]*63 and 1<d["ppl"]<5 and d["against"]["kl_mean"]<1e-6 and d["against"]["top1_agreement"]==1' \
    perplexity "$M" "$T/text" --ctx 128 --against "$M"

# ---- check finds what is wrong
cp "$M" "$T/nan.gguf"
size=$(wc -c <"$M")
printf '\377\377\377\377' | dd of="$T/nan.gguf" bs=1 seek=$((size - 4)) conv=notrunc 2>/dev/null
it check "$T/nan.gguf"
yes "check finds one NaN and names the tensor" test "$rc" -eq 1 -a "$(grep -c "PROBLEM  tensor '.*has 1 NaN" "$T/out")" -eq 1 -a "$(wc -l <"$T/err")" -eq 1
it check "$T/cut.gguf"
yes "check of a truncated file" test "$rc" -eq 1 -a "$(grep -c '^PROBLEM' "$T/out")" -eq 1

# ---- adapters: one without a name has its file's
L=$PWD/tests/data/lora
cp -R "$L/phi3" "$T/qwen3"
it logits tests/data/models/qwen3 --ids 1,2,3 --lora "$L/qwen3" --lora "$L/qwen3/:0.5"
yes "an adapter twice" test "$rc" -eq 0 -a -s "$T/out"
fails 1 "adapter qwen3: the adapter does not belong to this model" run "$M" Once --lora "$L/qwen3/"
fails 1 "adapter qwen3 #2: the adapter's tensor" logits tests/data/models/qwen3 --ids 1 --lora "$L/qwen3" --lora "$T/qwen3:0.5"
fails 1 "adapter law: the adapter does not belong to this model" run "$M" Once --lora law="$L/qwen3"

# ---- closed pipes, full disks, Ctrl-C
{ "$I" logits "$M" "Once upon a time there was" --json 2>"$T/err"; echo $? >"$T/rc"; } | head -c 5 >/dev/null
yes "a reader that goes away ends it without a word" test ! -s "$T/err"
if [ -c /dev/full ]; then
    bad=
    for c in "run $M Once --raw -n 20" "tokenize $M Once" "show $M --json" "help" "--version"; do
        # shellcheck disable=SC2086
        "$I" $c >/dev/full 2>"$T/err"; rc=$?
        [ "$rc" -eq 1 ] && grep -q 'cannot write the output' "$T/err" && [ "$(wc -l <"$T/err")" -eq 1 ] || bad="$bad [$c: $rc]"
    done
    yes "a full disk is an error ($bad)" test -z "$bad"
    for c in --json --json=no; do
        "$I" serve -m "$M" --port 0 $c >/dev/full 2>"$T/err" & SERVER=$!
        i=0
        while kill -0 "$SERVER" 2>/dev/null && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
        kill "$SERVER" 2>/dev/null
        wait "$SERVER"; rc=$?
        SERVER=
        yes "serve $c ends when nobody can learn its address" test $i -lt 100 -a "$rc" -eq 1
    done
else
    skip "a full disk is an error" "no /dev/full here"
    skip "serve ends when nobody can learn its address" "no /dev/full here"
fi
"$I" bench "$M" -r 1000 >"$T/out" 2>"$T/err" & pid=$!
sleep 1
kill -INT $pid
wait $pid; rc=$?
yes "Ctrl-C ends a long command as the signal says" test "$rc" -eq 130 -a ! -s "$T/out"

# ---- serve
fails 1 "is not built yet" serve -m hf:owner/name
fails 1 "there is no file or folder" serve -m "$M" -m x="$T/nothing.gguf" --log-level error -q --json
: >"$T/key"
fails 1 "holds no key" serve -m "$M" --api-key-file "$T/key" --json
fails 1 "$T/nokey" serve -m "$M" --api-key-file "$T/nokey" --json
"$I" serve -m story="$M" --port 0 --json >"$T/serve" 2>"$T/serve.err" & SERVER=$!
i=0
while [ ! -s "$T/serve" ] && [ $i -lt 100 ] && kill -0 "$SERVER" 2>/dev/null; do sleep 0.1; i=$((i + 1)); done
url=$(sed -n 's/.*"listening": "\(.*\)",*/\1/p' "$T/serve")
port=${url##*:}
if [ -n "$url" ]; then ok "serve listens on a free port"; else no "serve listens on a free port" "$(cat "$T/serve" "$T/serve.err")"; fi
yes "serve --json is one document" is_json "$T/serve"
yes "serve prints devices, plan, address and a curl line" test "$(grep -cE '^(device|model|Listening on http://|try     curl)' "$T/serve.err")" -ge 4
"$I" plan "$M" --json >"$T/plan" 2>/dev/null
planned=$(sed -n 's/.*"total": \([0-9]*\).*/\1/p' "$T/plan" | head -n 1) # the model's; then each device's
served=$(sed -n 's/.*"memory": \([0-9]*\).*/\1/p' "$T/serve")
yes "the planner is the allocator ($planned, $served)" test -n "$planned" -a "$planned" = "$served"
it serve -m "$M" --port "$port" --json
yes "a port in use: exit 1, the last line says so" test "$rc" -eq 1 -a "$(tail -1 "$T/err" | grep -c "$port")" -eq 1
if command -v curl >/dev/null 2>&1; then
    curl -s "$url/v1/completions" -H 'Content-Type: application/json' \
        -d '{"model":"story","prompt":"Once upon a time","max_tokens":60,"temperature":0}' >"$T/answer"
    yes "the story over HTTP" grep -qF "$GOLD" "$T/answer"
    curl -s "$url/api/hardware" >"$T/hw"
    yes "/api/hardware" is_json "$T/hw"
else
    skip "the story over HTTP" "no curl here"
    skip "/api/hardware" "no curl here"
fi
kill -TERM "$SERVER"
wait "$SERVER"; rc=$?
SERVER=
yes "SIGTERM drains and ends with 0" test "$rc" -eq 0

# ---- a model file that is cut while it is served: noticed before it is read again
served() { # ARGUMENT...: a server in the background; $url
    rm -f "$T/served"
    "$I" serve --port 0 --json "$@" >"$T/served" 2>"$T/served.err" & SERVER=$!
    i=0
    while [ ! -s "$T/served" ] && [ $i -lt 100 ] && kill -0 "$SERVER" 2>/dev/null; do sleep 0.1; i=$((i + 1)); done
    url=$(sed -n 's/.*"listening": "\(.*\)",*/\1/p' "$T/served")
    port=${url##*:}
}
ended() { kill "$SERVER" 2>/dev/null; wait "$SERVER"; rc=$?; SERVER=; }
cp "$M" "$T/cut.gguf"
served -m cut="$T/cut.gguf" --on-demand=no
if command -v curl >/dev/null 2>&1 && [ -n "$url" ]; then
    head -c 4096 "$M" >"$T/cut.gguf"
    code=$(curl -s -m 20 -o "$T/answer" -w '%{http_code}' "$url/v1/completions" -d '{"model":"cut","prompt":"Once upon a time","max_tokens":8}')
    yes "a model file that is cut: the answer and the log say so ($code)" \
        test "$code" -eq 500 -a "$(grep -c 'has changed since it was loaded' "$T/served.err")" -eq 1
    cp "$M" "$T/cut.gguf"
    code=$(curl -s -m 20 -o "$T/answer" -w '%{http_code}' "$url/v1/completions" -d '{"model":"cut","prompt":"Once upon a time","max_tokens":8}')
    yes "and when it is whole again it is served again" test "$code" -eq 200
    head -c 4096 "$M" >"$T/cut.gguf" # without a name nobody looks at the file before it is read
    curl -s -m 20 "$url/v1/completions" -d '{"prompt":"Once upon a time","max_tokens":8}' >/dev/null
    kill "$SERVER" 2>/dev/null
    wait "$SERVER"; rc=$?; SERVER=
    yes "one that is read all the same ends the server with a sentence ($rc)" \
        test "$rc" -eq 1 -a "$(grep -c 'changed or cut while it was in use' "$T/served.err")" -eq 1
else
    for t in "a model file that is cut" "and when it is whole again" "one that is read all the same"; do skip "$t" "no curl here"; done
    ended
fi

# ---- the store: list, models on demand, ps, stop, rm
cp "$M" "$T/data/impetus/models/second.gguf"
json "list --json" '[m["name"] for m in d["models"] if m["from"]=="store"]==["mine","second"] and d["models"][0]["arch"]=="llama"' list
it list
yes "list" test "$rc" -eq 0 -a "$(grep -cE '^(mine|second) .* llama, f32' "$T/out")" -eq 2
served --alias tale=mine --keep-alive 60
json "a server without -m has loaded nothing" 'd["models"]==[]' ps --port "$port"
yes "and says what it could load" grep -q '^on demand: .*mine.*second' "$T/served.err"
if command -v curl >/dev/null 2>&1; then
    curl -s "$url/v1/completions" -d '{"model":"tale","prompt":"Once upon a time","max_tokens":60,"temperature":0}' >"$T/answer"
    yes "a model of the store tells its story when it is named" grep -qF "$GOLD" "$T/answer"
    json "ps" 'len(d["models"])==1 and d["models"][0]["name"]=="mine" and d["models"][0]["device"]=="cpu0" and not d["models"][0]["pinned"]' ps --port "$port"
    it ps --port "$port"
    yes "ps for people" test "$rc" -eq 0 -a "$(grep -cE '^mine .* in 0 min [0-9]+ s|^mine .* in 1 min' "$T/out")" -eq 1
    it stop mine --port "$port"
    yes "stop" test "$rc" -eq 0 -a "$(cat "$T/out")" = "mine is not loaded any more"
    json "nothing is loaded then" 'd["models"]==[]' ps --port "$port"
    cp "$M" "$T/data/impetus/models/late.gguf"
    sleep 1.1
    code=$(curl -s -o "$T/answer" -w '%{http_code}' "$url/v1/completions" -d '{"model":"late","prompt":"Once","max_tokens":2}')
    yes "a model that came later is found ($code)" test "$code" -eq 200
else
    for t in "a model of the store" ps "ps for people" stop "nothing is loaded then" "a model that came later"; do skip "$t" "no curl here"; done
fi
fails 1 "the model 'nobody' is not known here" stop nobody --port "$port"
ended
fails 1 "no server answers" ps --port "$port"
# ---- caches on disk
served -m "$M" --kv-cache-max 1G --kv-cache "$T/kv"
if command -v curl >/dev/null 2>&1; then
    story=$(printf 'Once upon a time there was a cat. %.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25)
    curl -s "$url/v1/completions" -d "{\"model\":\"stories260K\",\"prompt\":\"$story\",\"max_tokens\":4}" >/dev/null
    code=$(curl -s -o "$T/answer" -w '%{http_code}' -X POST "$url/api/cache/save" -d '{"slot":1}')
    yes "saving takes no fields ($code)" test "$code" -eq 400
    code=$(curl -s -o "$T/answer" -w '%{http_code}' -X POST "$url/api/cache/save" -d '{}')
    yes "caches are saved on request ($code)" test "$code" -eq 202
    ended
    json "cache --json" 'd["blocks"]>2 and d["models"][0]["model"]=="stories260K" and d["models"][0]["tokens"]==64*d["blocks"]' cache --kv-cache "$T/kv"
else
    ended
    for t in "saving takes no fields" "caches are saved on request" "cache --json"; do skip "$t" "no curl here"; done
fi
it cache clear --kv-cache "$T/kv"
yes "cache clear" test "$rc" -eq 0 -a "$(ls "$T/kv" | grep -c kv)" -eq 0
fails 2 "'list' or 'clear'" cache empty --kv-cache "$T/kv"
fails 1 "a link" cache --kv-cache "$(ln -s "$T/kv" "$T/kv-link"; echo "$T/kv-link")"
it rm second
yes "rm" test "$rc" -eq 0 -a ! -e "$T/data/impetus/models/second.gguf"
fails 1 "there is no model 'second'" rm second
if [ "${BUILD:-build}" = build ]; then fails 1 "came with the program" rm impetus-nano # found beside build/
else skip "a bundled model stays" "the program is not beside the models"; fi
fails 1 "there is no model" rm ../models/mine
served -m story="$M" --on-demand=no
fails 1 "is pinned" stop story --port "$port"
ended
echo "1..$n"
