"""Make a virtual environment with vidflow and one of its extras, at the versions and hashes of locks/.

    python3 install.py EXTRA [FOLDER]

FOLDER is .venv unless given. Written so that any old Python can read it and refuse in one line.
"""

import os
import subprocess
import sys

OLDEST = (3, 11)
ROOT = os.path.dirname(os.path.abspath(__file__))
LOCKS = os.path.join(ROOT, "locks")


def main():
    if sys.version_info < OLDEST:
        refuse("vidflow needs Python %d.%d or newer, this is Python %d.%d" % (OLDEST + tuple(sys.version_info[:2])))
    extras = sorted(name[:-4] for name in os.listdir(LOCKS) if name.endswith(".txt"))
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in extras:
        refuse("usage: python3 install.py %s [FOLDER]" % "|".join(extras))
    folder = sys.argv[2] if len(sys.argv) == 3 else os.path.join(ROOT, ".venv")
    refuse_other_python(folder)
    run(sys.executable, "-m", "venv", folder)
    pip = [os.path.join(folder, "bin", "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run(*(pip + ["-r", os.path.join(LOCKS, sys.argv[1] + ".txt")]))
    run(*(pip + ["--no-deps", "-e", ROOT]))


def refuse_other_python(folder):
    """Refuse a folder that belongs to another version of Python: its packages would not be found."""
    config = os.path.join(folder, "pyvenv.cfg")
    if not os.path.isfile(config):
        return
    wanted = "%d.%d." % tuple(sys.version_info[:2])
    with open(config) as lines:
        found = [line.partition("=")[2].strip() for line in lines if line.startswith("version")]
    if found and not (found[0] + ".").startswith(wanted):
        refuse("%s belongs to Python %s: remove it, or give another folder" % (folder, found[0]))


def run(*command):
    code = subprocess.call(command)
    if code:
        sys.exit(code)


def refuse(sentence):
    sys.stderr.write("install.py: %s\n" % sentence)
    sys.exit(3)


if __name__ == "__main__":
    main()
