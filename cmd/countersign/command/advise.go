package command

import (
	"github.com/spf13/cobra"
)

func enrollAdvise(env *Env) *cobra.Command {
	var given string
	c := &cobra.Command{
		Use: "advise", Short: "Find the way in that fits your devices: five questions, one answer",
		Long: `advise asks what holds the keys, what the factory provides, who touches the devices, what network they have and how
many they are. It names one way in, why, what it gives up, what else to think of, and the commands. It asks no server.`,
		Example: `  countersign enroll advise
  countersign enroll advise --answers hardware=tpm,factory=no,who=owner,network=direct,count=1000`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var n answers
			var err error
			switch {
			case cmd.Flags().Changed("answers"):
				n, err = parseAnswers(given)
			case env.noInput || !isTerminal(env.In):
				err = usagef("there is no terminal to ask on: give --answers")
			default:
				err = n.ask(env.In, env.stderr())
			}
			if err != nil {
				return err
			}
			return showAdvice(env, advise(n))
		},
	}
	c.Flags().StringVar(&given, "answers", "", "answers to all questions, such as hardware=none,factory=no,who=installer,network=direct,count=20")
	return c
}

func showAdvice(env *Env, d advice) error {
	if env.output != formatTable {
		return show(env, d, view[advice]{name: func(d advice) string { return string(d.Method) }})
	}
	p := env.stdout()
	title := string(d.Method)
	if d.Variant != "" {
		title += " (" + d.Variant + ")"
	}
	p.linef("Take:        %s", p.green(title))
	p.linef("Why:         %s", d.Why)
	p.linef("You give up: %s", d.GivesUp)
	p.linef("Otherwise:   %s, if %s", d.RunnerUp, d.RunnerIf)
	for _, note := range d.Notes {
		p.linef("Mind:        %s", note)
	}
	where := ""
	for _, c := range d.Commands {
		if c.Where != where {
			where = c.Where
			p.linef("\n# %s", places[where])
		}
		p.linef("%s", c.Text)
	}
	p.linef("\nMore: %s", d.Docs)
	return nil
}

var places = map[string]string{"operator": "as operator, beside the server", "line": "on the factory line", "device": "on the device"}
