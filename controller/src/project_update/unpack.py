"""Unpacks an archive into a project: zip or tar, told by its content, by Python alone, as images need not have unzip.

unpack.py ARCHIVE DIRECTORY     0: done; 3: why not, in one line on standard error

Most archives hold one directory with everything in it: that one is no part of the project. A name that leads out of the
directory, and what is neither file, directory nor link within, is refused: nothing of such an archive is of use.
"""

import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib

try:
    from lzma import LZMAError
except ImportError:  # a Python without it opens no such archive
    LZMAError = zlib.error


class Refused(Exception):
    pass


def parts_of(name):
    """The parts of a member's name."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts or name.startswith("/"):
        raise Refused("the archive has a name that leads out of it: " + name)
    return parts


def of_zip(archive):
    """Name, kind, right to run, target of a link, and what opens it, of each member."""
    for member in archive.infolist():
        mode = member.external_attr >> 16
        if member.filename.endswith("/"):
            yield member.filename, "dir", False, None, None
        elif stat.S_ISLNK(mode):
            yield member.filename, "link", False, os.fsdecode(archive.read(member)), None
        else:
            yield member.filename, "file", bool(mode & 0o100), None, lambda member=member: archive.open(member)


def of_tar(archive):
    for member in archive.getmembers():
        if member.isdir():
            yield member.name, "dir", False, None, None
        elif member.issym():
            yield member.name, "link", False, member.linkname, None
        elif member.isfile() or member.islnk():
            yield member.name, "file", bool(member.mode & 0o100), None, lambda member=member: archive.extractfile(member)
        else:
            raise Refused("the archive has what is neither file, directory nor link: " + member.name)


def unpack(members, directory):
    members = [(parts_of(name), kind, run, target, opened) for name, kind, run, target, opened in members]
    members = [member for member in members if member[0]]
    tops = {parts[0] for parts, *_ in members}
    alone = len(tops) == 1 and all(len(parts) > 1 or kind == "dir" for parts, kind, *_ in members)
    links = []
    for parts, kind, run, target, opened in members:
        inside = parts[1:] if alone else parts
        if not inside:
            continue
        path = os.path.join(directory, *inside)
        if kind == "dir":
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "link":
            links.append((inside, target))
            continue
        with opened() as source, open(path, "wb") as out:
            shutil.copyfileobj(source, out)
        os.chmod(path, 0o755 if run else 0o644)
    # Last, so that nothing is written through one.
    for inside, target in links:
        within = os.path.normpath(os.path.join(*inside[:-1], target))
        if os.path.isabs(target) or within.split("/")[0] == "..":
            raise Refused("the archive has a link that leads out of it: " + "/".join(inside))
        path = os.path.join(directory, *inside)
        if os.path.lexists(path):
            os.remove(path)
        os.symlink(target, path)


def main(archive, directory):
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            unpack(of_zip(opened), directory)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            unpack(of_tar(opened), directory)
    else:
        raise Refused("what the address gives is no archive: neither zip nor tar")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, LZMAError, KeyError, RuntimeError) as error:
        print("the archive is broken, or of a kind that Python does not read: %s" % error, file=sys.stderr)
        sys.exit(3)
