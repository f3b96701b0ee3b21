# completion of autofit for PowerShell: autofit completion powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName autofit -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | Select-Object -Skip 1 |
            Where-Object { $_.Extent.EndOffset -lt $cursorPosition } | ForEach-Object { "$_" })
    # an empty word would be lost on its way to a program: the last one begins with =
    $found = @(autofit completion --for powershell -- @words "=$wordToComplete" 2>$null)
    if ($found.Count -eq 0 -or $found[0] -eq 'files') { return }
    $found | Select-Object -Skip 1 | ForEach-Object {
        $name, $about = $_ -split "`t", 2
        if (-not $about) { $about = $name }
        [System.Management.Automation.CompletionResult]::new($name, $name, 'ParameterValue', $about)
    }
}
