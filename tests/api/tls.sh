#!/bin/sh
# HTTPS with a certificate made here, asked by curl and openssl over loopback. Prints TAP.
# usage: BUILD=build sh tests/api/tls.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
I=$PWD/${BUILD:-build}/impetus
case ${BUILD:-build} in /*) I=$BUILD/impetus ;; esac
M=$PWD/models/stories260K.gguf
GOLD=', there was a little girl named Lily. She loved to play outside in the park.'
T=$(mktemp -d) || exit 1
SERVER=
trap '[ -n "$SERVER" ] && kill -9 "$SERVER" 2>/dev/null; rm -rf "$T"' EXIT
for v in $(env | sed -n 's/^\(IMPETUS_[A-Z_]*\)=.*/\1/p'); do unset "$v"; done
export XDG_CONFIG_HOME="$T/no-config" XDG_DATA_HOME="$T/data" HOME="$T"
n=0
yes() { # NAME COMMAND...
    n=$((n + 1)); name=$1; shift
    if "$@"; then echo "ok $n - $name"; else echo "not ok $n - $name"; tail -3 "$T/err" "$T/server.err" 2>/dev/null | sed 's/^/# /'; fi
}
fails() { # WORDS ARGUMENT...: exit 1, one line with WORDS
    words=$1; shift
    "$I" serve -m "$M" --port 0 "$@" >"$T/out" 2>"$T/err" </dev/null; rc=$?
    yes "refused: $words" test "$rc $(grep -cF -- "$words" "$T/err")" = "1 1"
}
for p in openssl curl; do
    command -v $p >/dev/null 2>&1 || { echo "ok 1 - HTTPS # SKIP no $p here"; echo "1..1"; exit 0; }
done
make_cert() { # NAME DAYS [KEYTYPE]
    openssl req -x509 -newkey "${3:-rsa:2048}" -nodes -keyout "$T/$1.key" -out "$T/$1.pem" -days "$2" -subj "/CN=$1" \
        -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" >"$T/out" 2>"$T/err" || echo "# openssl failed"
    chmod 600 "$T/$1.key"
}
make_cert one 2
make_cert two 2
"$I" serve -m "$M" --port 0 --tls-cert "$T/one.pem" --tls-key "$T/none" >"$T/out" 2>"$T/err" </dev/null
if grep -q "without TLS" "$T/err"; then
    yes "without TLS in the build it is refused in one line" test "$(wc -l <"$T/err")" -eq 1
    echo "ok 2 - HTTPS # SKIP built without TLS"; echo "1..2"; exit 0
fi

# ---- files that are wrong
fails "$T/none: No such file" --tls-cert "$T/one.pem" --tls-key "$T/none"
fails "$T/none: No such file" --tls-cert "$T/none" --tls-key "$T/one.key"
fails "--tls-key is missing" --tls-cert "$T/one.pem"
fails "--tls-cert is missing" --tls-key "$T/one.key"
fails "does not belong to the certificate" --tls-cert "$T/one.pem" --tls-key "$T/two.key"
fails "holds no certificate in PEM form" --tls-cert "$T/one.key" --tls-key "$T/one.key"
fails "holds no private key in PEM form" --tls-cert "$T/one.pem" --tls-key "$T/one.pem"
: >"$T/empty"
fails "holds no certificate in PEM form" --tls-cert "$T/empty" --tls-key "$T/one.key"
fails "holds no private key in PEM form" --tls-cert "$T/one.pem" --tls-key "$T/empty"
head -c 600 "$T/one.pem" >"$T/cut.pem"
fails "holds no certificate in PEM form" --tls-cert "$T/cut.pem" --tls-key "$T/one.key"
openssl rsa -in "$T/one.key" -aes128 -passout pass:secret -out "$T/locked.key" 2>/dev/null
fails "without a password" --tls-cert "$T/one.pem" --tls-key "$T/locked.key"
fails "is a folder" --tls-cert "$T" --tls-key "$T/one.key"

# ---- serving
cp "$T/one.pem" "$T/cert.pem"; cp "$T/one.key" "$T/cert.key"; chmod 600 "$T/cert.key"
"$I" serve -m story="$M" --port 0 --json --tls-cert "$T/cert.pem" --tls-key "$T/cert.key" >"$T/serve" 2>"$T/server.err" & SERVER=$!
i=0
while [ ! -s "$T/serve" ] && [ $i -lt 100 ] && kill -0 "$SERVER" 2>/dev/null; do sleep 0.1; i=$((i + 1)); done
url=$(sed -n 's/.*"listening": "\(.*\)",*/\1/p' "$T/serve")
at=127.0.0.1:${url##*:}
yes "the address says https" test "$url" = "https://$at"
ask() { curl -sS --max-time 60 --cacert "$T/one.pem" "$@" 2>"$T/err"; }
yes "a client that trusts the certificate is answered" test "$(ask "$url/health")" = '{"status":"ok"}'
yes "one that does not refuses" test -z "$(curl -sS "$url/health" 2>/dev/null)"
BODY='{"model":"story","prompt":"Once upon a time","max_tokens":60,"temperature":0}'
ask "$url/v1/completions" -d "$BODY" >"$T/answer"
yes "an answer" grep -qF "$GOLD" "$T/answer"
ask -N "$url/v1/completions" -d "${BODY%\}},\"stream\":true}" | sed -n 's/.*"text":"\([^"]*\)".*/\1/p' | tr -d '\n' >"$T/answer"
yes "a stream" grep -qF "$GOLD" "$T/answer"
head -c 3000000 /dev/zero | tr '\0' ' ' >"$T/big"; printf '%s' "$BODY" >>"$T/big"
ask "$url/v1/completions" --data-binary "@$T/big" >"$T/answer"
yes "a body of 3 MB" grep -qF "$GOLD" "$T/answer"
for i in 1 2 3 4 5 6 7 8; do (ask -N "$url/v1/completions" -d "${BODY%\}},\"stream\":true}" | grep -c '^data: ' >"$T/n.$i") & pids="${pids:-} $!"; done
for p in $pids; do wait "$p"; done
yes "eight streams at once" test "$(cat "$T"/n.* | sort -u | wc -l)" -eq 1
yes "a page of this origin may call" test "$(ask -o "$T/out" -w '%{http_code}' -H "Origin: https://$at" "$url/v1/models")" = 200
yes "one of plain http may not" test "$(ask -o "$T/out" -w '%{http_code}' -H "Origin: http://$at" "$url/v1/models")" = 403
yes "a foreign Host is refused" test "$(ask -o "$T/out" -w '%{http_code}' -H "Host: evil.com" "$url/health")" = 403
hello() { openssl s_client -connect "$at" "$@" </dev/null 2>&1; }
yes "TLS 1.2" sh -c "openssl s_client -connect $at -tls1_2 </dev/null 2>&1 | grep -q 'Protocol *: TLSv1.2'"
yes "TLS 1.3" sh -c "openssl s_client -connect $at -tls1_3 </dev/null 2>&1 | grep -q 'TLSv1.3'"
hello -tls1_1 -cipher ALL:@SECLEVEL=0 >"$T/old"
yes "not TLS 1.1" test "$(grep -cE 'Cipher is \(NONE\)|no protocols available' "$T/old")" -ge 1
yes "plain HTTP gets no answer" test -z "$(curl -s --max-time 10 "http://$at/health" 2>/dev/null)"
# ---- clients that leave: their requests end
ask -N --max-time 1 "$url/v1/completions" -d '{"model":"story","prompt":"Once","max_tokens":480,"ignore_eos":true,"stream":true}' >/dev/null
i=0
while [ "$(ask "$url/metrics" | sed -n 's/^impetus_requests_running //p')" != 0 ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i + 1)); done
yes "a client that leaves is noticed" test $i -lt 50

# ---- a new certificate while it runs
name_of() { openssl s_client -connect "$at" </dev/null 2>/dev/null | openssl x509 -noout -subject 2>/dev/null | tr -d ' '; }
yes "the first certificate" test "$(name_of)" = "subject=CN=one"
cp "$T/two.pem" "$T/cert.pem"
kill -HUP "$SERVER"; sleep 0.5
yes "half of a new one changes nothing" test "$(name_of)" = "subject=CN=one"
yes "and the log says why" grep -q "does not belong" "$T/server.err"
cp "$T/two.key" "$T/cert.key"
i=0
while [ "$(name_of)" != "subject=CN=two" ] && [ $i -lt 60 ]; do sleep 0.1; i=$((i + 1)); done
yes "the new one is taken without being told" test "$(name_of)" = "subject=CN=two"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$T/cert.key" -out "$T/cert.pem" -days 2 -subj "/CN=three" 2>/dev/null
kill -HUP "$SERVER"; sleep 0.5
yes "an elliptic curve's, at once when told" test "$(name_of)" = "subject=CN=three"
chmod 644 "$T/cert.key"; kill -HUP "$SERVER"; sleep 0.5
yes "a key that others may read is warned of" grep -q "may be read by others" "$T/server.err"
kill -TERM "$SERVER"; wait "$SERVER"; rc=$?; SERVER=
yes "it ends as asked" test "$rc" -eq 0
echo "1..$n"
