"""Run every tests/reference/*.py (or those named) and print 'N passed, N failed, N skipped'."""
import os
import pathlib
import re
import subprocess
import sys

here = pathlib.Path(__file__).resolve().parent.parent
env = dict(os.environ, PYTHONPATH=str(here / "lib"), PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
total = [0, 0, 0]
for script in sorted(here.glob("*.py")):
    if sys.argv[1:] and script.stem not in sys.argv[1:]:
        continue
    r = subprocess.run([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    skipped = len(re.findall(r"^ok .*# SKIP", r.stdout, re.M))
    passed = len(re.findall(r"^ok ", r.stdout, re.M)) - skipped
    failed = len(re.findall(r"^not ok ", r.stdout, re.M))
    if r.returncode and not failed:
        failed = 1
    total = [total[0] + passed, total[1] + failed, total[2] + skipped]
    print(f"{'FAIL' if failed else 'ok  '} {script.stem} ({passed} passed" + (f", {skipped} skipped" if skipped else "") + ")")
    for line in r.stdout.splitlines():
        if line.startswith(("ok ", "not ok ")) or failed:
            print("    " + line)
print(f"{total[0]} passed, {total[1]} failed, {total[2]} skipped")
sys.exit(bool(total[1]))
