#!/bin/sh
# The whole program compiled and linked for macOS on arm64, without an SDK: see mk/apple.mk. Shows that no call, type or
# symbol is used that macOS does not have; nothing is run. usage: BUILD=build sh tests/fake/apple.sh
unset MAKEFLAGS MAKELEVEL MFLAGS
BUILD=${BUILD:-build}
name="compiled and linked for arm64-apple-macos13; not run here"
why=$(make -s apple-tools BUILD="$BUILD" 2>&1)
if [ $? -ne 0 ]; then
    echo "1..1"; echo "ok 1 - $name # SKIP $(echo "$why" | head -1)"
    exit 0
fi
echo "1..1"
if make -s apple BUILD="$BUILD" && [ "$(od -An -tx1 -N8 "$BUILD/apple/impetus" | tr -d ' \n')" = cffaedfe0c000001 ]; then
    echo "ok 1 - $name"
else
    echo "# a call or type that macOS has and tests/fake/macos/system.h lacks is to be declared there"
    echo "not ok 1 - $name"
fi
