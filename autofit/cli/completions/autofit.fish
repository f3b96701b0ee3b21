# completion of autofit for fish: autofit completion fish | source
function __autofit_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    test (count $current) -gt 0; or set current ""
    set -l found (command autofit completion --for fish -- $before[2..-1] "$current" 2>/dev/null)
    if test "$found[1]" = files
        __fish_complete_path "$current"
    else if test (count $found) -gt 1
        printf '%s\n' $found[2..-1]
    end
end
complete -c autofit -f -k -a '(__autofit_complete)'
