"""Makes the man page and the bash completion out of the programs' own --help, so that they say the same.

In: the built `tokenflex`, a folder. Out: tokenflex.1 and tokenflex.bash there.
"""

import re
import subprocess
import sys
from pathlib import Path

OPTION = re.compile(r"^ {2,6}(?:(-\w), )?--([a-z][a-z-]*)(?: (\S+))? {2,}(.*)$")
BARE = re.compile(r"^ {2,6}(?:(-\w), )?--([a-z][a-z-]*)(?: (\S+))?$")
VERBS = {"dead": ["list", "show", "retry", "drop"]}
EXIT_STATUS = {0: "Done.", 1: "It could not be done, or not to its end; a message says why.",
               2: "Wrong usage; nothing was begun.",
               3: "Done, but some pictures failed, or some jobs are not as they were asked to be."}
FILE_UNITS = {"FILE", "PAGE", "DIR", "PATH"}


def said(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def escape(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def parse(text):
    """Usage line, summary, and options as [letter, name, unit, help]."""
    head, _, tail = text.partition("\nOptions:\n")
    usage, _, summary = head.partition("\n")
    options = []
    for line in tail.splitlines():
        found = OPTION.match(line) or BARE.match(line)
        if found:
            options.append([found[1], found[2], found[3], found[4] if found.re is OPTION else ""])
        elif line.strip() and options:
            options[-1][3] += " " + line.strip()
    return usage.removeprefix("Usage: "), summary.strip(), options


def man(version, commands):
    out = [f'.TH TOKENFLEX 1 "" "tokenflex {version}" "User Commands"', ".SH NAME",
           "tokenflex \\- captions for photos, at scale", ".SH SYNOPSIS"]
    for name, (usage, _, _) in commands.items():
        out += [".br", f".B {escape('tokenflex ' + name)}", escape(usage.removeprefix(f"tokenflex {name}").strip())]
    out += [".SH DESCRIPTION", "Writes captions for pictures: a vision encoder turns each into vision tokens, a language",
            "model writes the caption. Everything runs on this machine unless a deployment is named."]
    for name, (_, summary, options) in commands.items():
        out += [f".SH {name.upper()}", *[escape(line) for line in summary.splitlines()]]
        for letter, long_name, unit, text in options:
            flags = (f"\\fB{escape(letter)}\\fR, " if letter else "") + f"\\fB{escape('--' + long_name)}\\fR"
            out += [".TP", flags + (f" \\fI{escape(unit)}\\fR" if unit else ""), escape(text.strip())]
    out.append(".SH EXIT STATUS")
    for status, text in EXIT_STATUS.items():
        out += [".TP", f".B {status}", escape(text)]
    out += [".SH EXAMPLES", ".nf", escape("tokenflex caption ~/Pictures -o captions.jsonl --report captions.html"), ".fi",
            ".SH SEE ALSO", "redis\\-server(1)"]
    return "\n".join(out) + "\n"


def completion(commands):
    lines = ["# bash completion for tokenflex; made from its --help.", "_tokenflex() {",
             '  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=', "  COMPREPLY=()",
             "  if [ \"$COMP_CWORD\" -eq 1 ]; then",
             f"    mapfile -t COMPREPLY < <(compgen -W '{' '.join(commands)} help version --help --version' -- \"$word\")",
             "    return", "  fi", "  case ${COMP_WORDS[1]}:$before in"]
    for name, (_, _, options) in commands.items():
        for letter, long_name, unit, _ in options:
            if not unit:
                continue
            flags = "|".join(f"{name}:{flag}" for flag in [letter, f"--{long_name}"] if flag)
            if "|" in unit and unit == unit.lower():
                lines.append(f"    {flags}) mapfile -t COMPREPLY < <(compgen -W '{unit.replace('|', ' ')}' -- \"$word\"); return ;;")
            elif unit in FILE_UNITS:
                lines.append(f"    {flags}) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\"); return ;;")
            else:
                lines.append(f"    {flags}) return ;;")
    lines += ["  esac", "  case ${COMP_WORDS[1]} in"]
    for name, (_, _, options) in commands.items():
        lines.append(f"    {name}) words='{' '.join('--' + option[1] for option in options)}' ;;")
    lines.append("  esac")
    for name, verbs in VERBS.items():
        lines.append(f"  if [[ ${{COMP_WORDS[1]}} == {name} && $COMP_CWORD -eq 2 && $word != -* ]]; then "
                     f"mapfile -t COMPREPLY < <(compgen -W '{' '.join(verbs)}' -- \"$word\"); return; fi")
    lines += ['  if [[ $word == -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")',
              '  else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$word"); fi', "}",
              "complete -F _tokenflex tokenflex"]
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: make_docs.py TOKENFLEX FOLDER")
    program, folder = sys.argv[1], Path(sys.argv[2])
    listed = said(program, "--help").partition("\nCommands:\n")[2].partition("\n\n")[0]
    names = [line.split()[0] for line in listed.splitlines()]
    commands = {name: parse(said(program, name, "--help")) for name in names}
    version = said(program, "--version").split()[1]
    (folder / "tokenflex.1").write_text(man(version, commands))
    (folder / "tokenflex.bash").write_text(completion(commands))


if __name__ == "__main__":
    main()
