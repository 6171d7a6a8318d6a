"""`conv3d completion`: scripts that let a shell complete command lines, and the completions.

Click asks a parameter, which takes its completions from `BY_FILE` or `BY_NAME`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.messages import COMPLETE_VAR
from conv3d_cli.settings.option import File

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that lets a shell complete command lines.

    \b
      conv3d completion bash > ~/.local/share/bash-completion/completions/conv3d
      conv3d completion zsh > ~/.zfunc/_conv3d      # fpath+=~/.zfunc; compinit in ~/.zshrc
      conv3d completion fish > ~/.config/fish/completions/conv3d.fish

    Or for one session: eval "$(conv3d completion bash)". The shell then completes commands,
    options, kernels with their parameters, presets, activations, and file names.
    """
    from click.shell_completion import get_completion_class

    register_shells()
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "conv3d", COMPLETE_VAR).source())


# --------------------------------------------------------------------------------------------------
# Completions


def files(incomplete: str) -> list[CompletionItem]:
    """Ask the shell to complete file names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def folders(incomplete: str) -> list[CompletionItem]:
    """Ask the shell to complete folder names."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def kernels(incomplete: str) -> list[CompletionItem]:
    """Complete built-in kernels, their parameters after a colon and their values; and files.

    >>> [item.value for item in kernels("gau")]
    ['gaussian:', 'gaussian_derivative:', 'gau']
    >>> [item.value for item in kernels("sobel:axis=d")]
    ['sobel:axis=d', 'sobel:axis=dhw']
    >>> [item.value for item in kernels("gaussian:fwhm=6mm:tr")]
    ['gaussian:fwhm=6mm:truncate=']
    """
    from click.shell_completion import CompletionItem

    from conv3d_cli.kernels import describe_builtins

    known = {kernel.name: kernel for kernel in describe_builtins()}
    name, colon, _ = incomplete.partition(":")
    if not colon:
        begun = [kernel for kernel in known.values() if kernel.name.startswith(incomplete)]
        # kernels that need or profit from a parameter get a colon
        open_ended = {
            k.name for k in begun if any(p.required or p.default is None for p in k.parameters)
        }
        names = [
            f"{kernel.name}:" if kernel.name in open_ended else kernel.name for kernel in begun
        ]
        return [*map(CompletionItem, names), *files(incomplete)]
    if name not in known:
        return files(incomplete)
    before, _, typed = incomplete.rpartition(":")
    key, equals, value = typed.partition("=")
    parameters = {parameter.name: parameter for parameter in known[name].parameters}
    if equals:
        words = parameters[key].kind.words if key in parameters else ()
        found = [f"{key}={word}" for word in words if word.startswith(value)]
    else:
        used = {pair.partition("=")[0] for pair in before.split(":")[1:]}
        found = [f"{key}=" for key in parameters if key.startswith(typed) and key not in used]
    return [CompletionItem(f"{before}:{text}") for text in found]


def activations(incomplete: str) -> list[CompletionItem]:
    """Complete Keras' activations.

    >>> [item.value for item in activations("relu")]
    ['relu', 'relu6']
    """
    from click.shell_completion import CompletionItem

    from conv3d_cli.layer.activations import ACTIVATIONS

    names = [function.__name__ for function in ACTIVATIONS]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


BY_FILE: dict[File, Callable[[str], list[CompletionItem]]] = {
    File.READ: files,
    File.MASK: files,
    File.WRITTEN: files,
    File.FOLDER: folders,
    File.KERNEL: kernels,
    File.BIAS: files,
}
BY_NAME: dict[str, Callable[[str], list[CompletionItem]]] = {"activation": activations}
"""Completions of the table's options that name no file."""


# --------------------------------------------------------------------------------------------------
# Shells

# Bash also splits words at : and =, which kernels contain. So the script passes the whole line, and
# removes the part before the last : or = from the answers. It adds files itself, since they may
# come together with other answers.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" type value word before="" name
    word="${line##*[[:space:]]}"
    case "$word" in --*=*) word="${word#*=}" ;; esac
    case "$word" in
        *[:=]*) before="${word%%"${word##*[:=]}"}" ;;
    esac
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case "$type" in
            dir) compopt -o dirnames ;;
            file)
                if (( ${#COMPREPLY[@]} == 0 )); then
                    compopt -o default
                else
                    for name in $(compgen -f -- "$word"); do
                        [[ -d "$name" ]] && { name="$name/"; compopt -o nospace; }
                        COMPREPLY+=("$(printf '%%q' "${name#"$before"}")")
                    done
                fi ;;
            plain)
                case "$value" in *[:=]) compopt -o nospace ;; esac
                COMPREPLY+=("${value#"$before"}") ;;
        esac
    done < <(COMP_WORDS="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

# As Click's, but without a space after an answer that continues, such as gaussian:
_ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a plain open described response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key descr in ${response}; do
        if [[ "$type" == "plain" ]]; then
            if [[ "$descr" != "_" ]]; then
                described+=("$key":"$descr")
            elif [[ "$key" == *[:=] ]]; then
                open+=("$key")
            else
                plain+=("$key")
            fi
        elif [[ "$type" == "dir" ]]; then
            _path_files -/
        elif [[ "$type" == "file" ]]; then
            _path_files -f
        fi
    done
    [[ -n "$described" ]] && _describe -V unsorted described -U
    [[ -n "$plain" ]] && compadd -U -V unsorted -a plain
    [[ -n "$open" ]] && compadd -U -S '' -V unsorted -a open
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


def words_of(line: str) -> tuple[list[str], str]:
    r"""Split a command line: its finished words after the command, and the unfinished last one.

    After a space, the unfinished word is "".

    >>> words_of("conv3d apply a.nii -k gaussian:fw"), words_of("conv3d app")
    ((['apply', 'a.nii', '-k'], 'gaussian:fw'), ([], 'app'))
    >>> words_of("conv3d view my\\ scan.nii ")
    (['view', 'my scan.nii'], '')
    """
    from click.shell_completion import split_arg_string

    words = split_arg_string(line)[1:]
    finished = line[-1:].isspace() and not line.endswith("\\ ")
    return (words, "") if finished or not words else (words[:-1], words[-1])


def register_shells() -> None:
    """Register our scripts for bash and zsh with Click."""
    from click.shell_completion import BashComplete, ZshComplete, add_completion_class

    class Bash(BashComplete):
        source_template = _BASH

        def source(self) -> str:
            return self.source_template % self.source_vars()  # Click would ask bash for its version

        def get_completion_args(self) -> tuple[list[str], str]:
            return words_of(os.environ["COMP_WORDS"])

    class Zsh(ZshComplete):
        source_template = _ZSH

    add_completion_class(Bash)
    add_completion_class(Zsh)
