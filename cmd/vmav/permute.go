package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// permute moves the options of a command line in front of its operands, so that they are
// accepted before or after the domain, as virsh accepts them. The library stops at the
// first operand. Everything after "--" remains an operand.
func permute(app *cli.App, args []string) []string {
	if len(args) < 2 {
		return args
	}
	out := []string{args[0]}
	i := 1
	flags := app.Flags
	cmds := app.Commands
	// Global options, then the path of command names.
	for i < len(args) {
		if arg := args[i]; strings.HasPrefix(arg, "-") && arg != "-" {
			if arg == "--" {
				break
			}
			n := optionLength(flags, args[i:])
			out = append(out, args[i:i+n]...)
			i += n
			continue
		}
		cmd := find(cmds, args[i])
		if cmd == nil {
			break
		}
		out = append(out, args[i])
		i++
		flags, cmds = cmd.Flags, cmd.Subcommands
		if len(cmds) == 0 {
			break
		}
	}
	var operands []string
	for i < len(args) {
		arg := args[i]
		if arg == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if strings.HasPrefix(arg, "-") && arg != "-" {
			n := optionLength(flags, args[i:])
			out = append(out, args[i:i+n]...)
			i += n
			continue
		}
		operands = append(operands, arg)
		i++
	}
	if len(operands) > 0 && strings.HasPrefix(operands[0], "-") {
		out = append(out, "--")
	}
	return append(out, operands...)
}

func find(cmds []*cli.Command, name string) *cli.Command {
	for _, c := range cmds {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// optionLength returns how many arguments the option at args[0] consists of: two if its
// value is an argument of its own.
func optionLength(flags []cli.Flag, args []string) int {
	name, _, joined := strings.Cut(strings.TrimLeft(args[0], "-"), "=")
	if joined || len(args) < 2 {
		return 1
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n != name {
				continue
			}
			if _, isBool := f.(*cli.BoolFlag); isBool {
				return 1
			}
			return 2
		}
	}
	return 1
}
