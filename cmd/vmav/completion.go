package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/domain"
)

// The shells ask vmav itself what can follow at the cursor. So the scripts need no change
// when the commands change.
const (
	bashCompletion = `_vmav() {
	local cur="${COMP_WORDS[COMP_CWORD]}" words
	words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	[[ $cur == -* ]] && words+=("$cur")
	COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur"))
}
complete -o bashdefault -o default -F _vmav vmav
`
	zshCompletion = `#compdef vmav
_vmav() {
	local -a found
	found=("${(@f)$("${words[@]:0:$((CURRENT - 1))}" --generate-bash-completion 2>/dev/null)}")
	compadd -a found
	_files
}
compdef _vmav vmav
`
	fishCompletion = `function __vmav_complete
	set -l words (commandline -opc)
	$words --generate-bash-completion 2>/dev/null
end
complete -c vmav -f -a '(__vmav_complete)'
`
)

func completionCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:        "completion",
		Usage:       "print the completion script of a shell",
		ArgsUsage:   "bash|zsh|fish",
		Description: "For bash: source <(vmav completion bash)",
		Action: func(c *cli.Context) error {
			script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Args().First()]
			if !ok {
				return fmt.Errorf("completion for shell %q: known are bash, zsh and fish", c.Args().First())
			}
			_, err := fmt.Fprint(e.stdout, script)
			return err
		},
	})
}

// completeDomains completes the names of running domains and the options of a command.
func completeDomains(e *env) cli.BashCompleteFunc {
	return func(c *cli.Context) {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		uri, err := e.uri(c)
		if err != nil {
			return
		}
		h, err := domain.Connect(uri)
		if err != nil {
			return // completion cannot show errors
		}
		defer h.Close()
		doms, err := h.List(false)
		if err != nil {
			return
		}
		for _, d := range doms {
			fmt.Fprintln(e.stdout, d.Name)
		}
	}
}
