package command

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/countersign-iot/countersign/cmd/countersign/demo"
)

func demoCommand(env *Env) *cobra.Command {
	o := demo.Options{Now: env.Now, Progress: func(r demo.Result) { showStep(env, r) }}
	var methods string
	var asJSON bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch the main job: enroll, connect, renew, suspend, revoke, catch a clone",
		Long: `demo starts a server on a temporary folder, issues devices their identities, and shows
what happens to them: each step is checked, and the exit code is 1 if one did not do what it says.`,
		Example: "  countersign demo\n  countersign demo --methods all\n  countersign demo --models\n  countersign demo --devices 100 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Devices < demo.MinDevices || o.Devices > demo.MaxDevices {
				return usagef("--devices %d is not between %d and %d", o.Devices, demo.MinDevices, demo.MaxDevices)
			}
			if err := oneOf("--methods", methods, "token", "all"); err != nil {
				return err
			}
			o.Methods = methods == "all"
			env.wide = true // its table was never cut to the terminal: results are sentences
			env.stderr().linef("countersign demo: a server on a temporary folder, %d devices on loopback", o.Devices)
			results, err := demo.Run(cmd.Context(), o)
			if len(results) > 0 {
				err = errors.Join(err, showDemo(env, results, asJSON))
			}
			if err == nil && slices.ContainsFunc(results, func(r demo.Result) bool { return !r.OK }) {
				return errors.New("a step did not do what it says")
			}
			return err
		},
	}
	c.Flags().IntVar(&o.Devices, "devices", 25, "how many devices")
	c.Flags().StringVar(&methods, "methods", "token", "all: another device for each way to a certificate")
	c.Flags().BoolVar(&o.Models, "models", false, "show the models of authentication too, and what comes of guessing")
	c.Flags().BoolVar(&asJSON, "json", false, "print the table as JSON")
	complete(c, "methods", "token", "all")
	return c
}

// showStep prints a step as it ends.
func showStep(env *Env, r demo.Result) {
	p := env.stderr()
	mark := p.green("ok  ")
	switch {
	case r.Skipped:
		mark = p.yellow("skip")
	case !r.OK:
		mark = p.red("FAIL")
	}
	p.linef("  %s  %s: %s", mark, r.Step, printable(r.Result))
}

func showDemo(env *Env, results []demo.Result, asJSON bool) error {
	if asJSON {
		return writeJSON(env.Out, results)
	}
	return list(env, itemsOf(results), 0, viewOf(env, "STEP step, OK, TIME, RESULT result", func(r demo.Result) string {
		switch {
		case r.Skipped:
			return "-"
		case !r.OK:
			return "NO"
		}
		return "yes"
	}, func(r demo.Result) string { return fmt.Sprintf("%.0f ms", r.MS) }))
}
