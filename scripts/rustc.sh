#!/bin/sh
# rustc for release builds: links what lives for milliseconds statically. Half of such a program's start is the loading of
# its libraries and their relocation (docs/performance.md); nothing else about it changes.
case " $* " in
*" --crate-name glurun "*" --crate-type bin "* | *" --crate-name glumake_sh "*" --crate-type bin "*)
    # Not every distribution has the static C library with the other one.
    case $(cc -print-file-name=libc.a) in
    /*) exec "$@" -C target-feature=+crt-static -C relocation-model=static ;;
    esac
    ;;
esac
exec "$@"
