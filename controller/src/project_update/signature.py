"""Checks that a project is what its signer signed, as ansible-sign does: a signed list of checksums, and no file besides.

signature.py PROJECT KEY KEPT...     0: it is; 3: why not, in one line on standard error; 4: gpg is missing

`.ansible-sign/sha256sum.txt` lists files with their SHA-256, `.ansible-sign/sha256sum.txt.sig` is a detached signature of that
list by the key in file KEY. Every regular file must be listed, but for what `MANIFEST.in` excludes and what lies in a
directory KEPT, which is not the project's own (`.git`). Links are not files: where they lead to is.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile

SIGNED = ".ansible-sign"
SUMS = SIGNED + "/sha256sum.txt"
SIGNATURE = SUMS + ".sig"
HOW = "sign it with `ansible-sign project gpg-sign .` and commit " + SIGNED
SHOWN = 5


class Refused(Exception):
    pass


class NoGpg(Exception):
    pass


def gpg(home, *args):
    """What gpg says for programs, and for people."""
    try:
        command = ["gpg", "--batch", "--no-tty", "--homedir", home, "--status-fd", "1"] + list(args)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise NoGpg()
    words = [line.split()[1:] for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith("[GNUPG:] ")]
    return {line[0]: line[1:] for line in words if line}, done.stderr.decode("utf-8", "replace").strip()


def check_signature(project, key):
    for name in (SIGNATURE, SUMS):
        if not os.path.isfile(os.path.join(project, name)):
            raise Refused("the project has no " + name + ": " + HOW)
    with tempfile.TemporaryDirectory() as home:
        said, words = gpg(home, "--import", key)
        # Of the key that was taken last; one that expired or was revoked is taken too.
        if "IMPORT_OK" not in said:
            raise Refused("the credential holds no public key that gpg can read: " + last_line(words))
        own = said["IMPORT_OK"][1]
        said, words = gpg(home, "--verify", os.path.join(project, SIGNATURE), os.path.join(project, SUMS))
    if "BADSIG" in said:
        raise Refused("the list of checksums " + SUMS + " was changed after it was signed: " + HOW + " again")
    if "NO_PUBKEY" in said:
        raise Refused(
            "it is signed by another key (" + said["NO_PUBKEY"][0] + ") than that of the credential (" + own + "): "
            "put the signer's public key into the credential, or have the right one sign it"
        )
    for word, why in (
        ("REVKEYSIG", "the key that signed it was revoked"),
        ("EXPKEYSIG", "the key that signed it has expired"),
        ("EXPSIG", "its signature has expired"),
    ):
        if word in said:
            raise Refused(why + ": sign it with a key that holds, and put its public part into the credential")
    if "GOODSIG" not in said or "VALIDSIG" not in said:
        raise Refused("gpg cannot make sense of " + SIGNATURE + ": " + last_line(words))


def last_line(words):
    return words.splitlines()[-1] if words else "it said nothing"


def listed(project):
    sums = {}
    with open(os.path.join(project, SUMS), encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines.read().splitlines(), 1):
            if not line.strip():
                continue
            found = re.match(r"([0-9a-f]{64}) [ *](.+)\Z", line)
            if not found or found.group(2) in sums:
                raise Refused("line %d of %s is none of sha256sum's: %s again" % (number, SUMS, HOW))
            sums[found.group(2)] = found.group(1)
    return sums


def files(project, kept):
    for place, dirs, names in os.walk(project):
        below = os.path.relpath(place, project)
        if below == ".":
            dirs[:] = [name for name in dirs if name not in kept and name != SIGNED]
        for name in names:
            path = os.path.join(place, name)
            # A submodule's `.git` is a file of git's that says where the rest is.
            if os.path.isfile(path) and not os.path.islink(path) and not (name == ".git" and ".git" in kept):
                yield os.path.normpath(os.path.join(below, name))


def expression(glob):
    """A pattern of file names as an expression; only in `**` of a rule do they pass a slash, and no rule has that."""
    out, rest = "", glob
    while rest:
        group = re.match(r"\[([!^]?)(\]?[^\]]*)\]", rest)
        if group:
            inside = group.group(2).replace("\\", "\\\\").replace("[", "\\[")
            out += "[" + ("^" if group.group(1) else "") + ("\\" if inside.startswith(("^", "]")) else "") + inside + "]"
            rest = rest[group.end():]
            continue
        out += {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0]))
        rest = rest[1:]
    return out


def rule(words):
    """Whether a line of MANIFEST.in takes files in, and an expression for each pattern: which."""
    if len(words) == 1:
        words = ["include"] + words
    action, args = words[0], words[1:]
    name = action.replace("include", "").replace("exclude", "")
    if name == "" and args:
        made = [r"\A" + expression(arg) + r"\Z" for arg in args]
    elif name == "global-" and args:
        made = [expression(arg) + r"\Z" for arg in args]
    elif name == "recursive-" and len(args) > 1:
        made = [r"\A" + expression(args[0].rstrip("/")) + "/.*" + expression(arg) + r"\Z" for arg in args[1:]]
    elif action in ("graft", "prune") and len(args) == 1:
        made = [r"\A" + expression(args[0].rstrip("/")) + "/"]
    else:
        raise Refused("MANIFEST.in has a line that is no rule: " + " ".join(words))
    return action == "graft" or action.endswith("include"), [re.compile(each, re.S) for each in made]


def wanted(project, found):
    """Files that must be listed: all but those that MANIFEST.in leaves out, rule after rule."""
    try:
        with open(os.path.join(project, "MANIFEST.in"), encoding="utf-8", errors="surrogateescape") as manifest:
            lines = [line.strip() for line in manifest]
    except FileNotFoundError:
        return set(found)
    taken = set(found)
    for line in lines:
        if not line or line.startswith("#"):
            continue
        takes, expressions = rule(line.split())
        hit = {path for path in found if any(each.search(path) for each in expressions)}
        taken = taken | hit if takes else taken - hit
    return taken | {"MANIFEST.in"}


def named(paths):
    shown = sorted(paths)[:SHOWN]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (" and %d more" % more if more > 0 else "")


def check_files(project, kept):
    sums, found = listed(project), set(files(project, kept))
    must = wanted(project, found)
    gone = set(sums) - found
    if gone:
        raise Refused("signed files are missing: " + named(gone))
    changed = {path for path in sums if digest(os.path.join(project, path)) != sums[path]}
    if changed:
        raise Refused("files were changed after they were signed: " + named(changed) + "; " + HOW + " again")
    added = must - set(sums)
    if added:
        raise Refused("files are not signed: " + named(added) + "; " + HOW + " again, or leave them out in MANIFEST.in")


def digest(path):
    made = hashlib.sha256()
    with open(path, "rb") as content:
        for block in iter(lambda: content.read(1 << 20), b""):
            made.update(block)
    return made.hexdigest()


if __name__ == "__main__":
    try:
        check_signature(sys.argv[1], sys.argv[2])
        check_files(sys.argv[1], sys.argv[3:])
    except NoGpg:
        print("gpg is missing", file=sys.stderr)
        sys.exit(4)
    except Refused as error:
        print(str(error).encode("utf-8", "replace").decode(), file=sys.stderr)
        sys.exit(3)
