# completion of autofit for bash: eval "$(autofit completion bash)"
_autofit() {
    local IFS=$'\n' line kind="" word="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=()
    while IFS= read -r line; do
        if [ -z "$kind" ]; then
            kind=$line
        else
            COMPREPLY+=("${line%%$'\t'*}")
        fi
    done < <(command autofit completion --for bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [ "$kind" = files ]; then
        case $word in "=" | ":") word="" ;; esac
        compopt -o filenames 2>/dev/null
        while IFS= read -r line; do
            COMPREPLY+=("$line")
        done < <(compgen -f -- "$word")
    fi
}
complete -o nosort -F _autofit autofit 2>/dev/null || complete -F _autofit autofit
