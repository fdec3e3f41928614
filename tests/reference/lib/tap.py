"""Test results as TAP lines on stdout, the form that tools/run_tests counts."""
import sys
import traceback

_n = _failed = 0


def ok(good, name, note=""):
    global _n, _failed
    _n += 1
    _failed += not good
    print(f"{'ok' if good else 'not ok'} {_n} - {name}" + (f": {note}" if note else ""), flush=True)
    return good


def skip(name, why):
    global _n
    _n += 1
    print(f"ok {_n} - {name} # SKIP {why}", flush=True)


def attempt(name, fn, *args):
    """Run fn; an exception is a failed test with its traceback as comments."""
    try:
        return fn(*args)
    except Exception as e:  # noqa: BLE001 - every failure is reported as a result
        for line in traceback.format_exc().splitlines():
            print("# " + line)
        ok(False, name, repr(e)[:200])
        return None


def done():
    print(f"1..{_n}")
    sys.exit(1 if _failed or not _n else 0)
