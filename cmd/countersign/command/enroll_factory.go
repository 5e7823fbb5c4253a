package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

// progressEvery is how many items a line of progress stands for.
const progressEvery = 1000

func enrollFactory(env *Env) *cobra.Command {
	var fleet, profile, in, out string
	c := &cobra.Command{
		Use: "factory --fleet FLEET", Short: "Issue certificates of many new devices, on your word: JSON lines in, JSON lines out",
		Long: `Issue certificates of many new devices, on your word.

Each line of the input is {"item": "...", "id": "...", "csr": "..."}: item names the
line and stays the same in another run, id is optional, csr is PEM or base64. The
output has a line for each, in the same order. After a failure run it again with
the same input: what was granted is given again.`,
		Example: "  countersign enroll factory --fleet pumps --profile idevid --in requests.jsonl --out certificates.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			r, err := open(env, in)
			if err != nil {
				return err
			}
			defer func() { _ = r.Close() }()
			w := env.Out
			if out != "-" {
				f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the operator's own file
				if err != nil {
					return &usageError{err.Error()}
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				w = f
			}
			report, err := factory(cmd.Context(), env, r, w, [2]string{fleet, profile})
			if err != nil {
				return err
			}
			return tellFactory(env, report)
		},
	}
	c.Flags().StringVar(&fleet, "fleet", countersign.DefaultFleet, "fleet of the devices")
	c.Flags().StringVar(&profile, "profile", "", "certificate profile, such as idevid (default the fleet's)")
	c.Flags().StringVar(&in, "in", "-", "file of requests; - is standard input")
	c.Flags().StringVar(&out, "out", "-", "file of results; - is standard output")
	completeWith(c, "fleet", fleetNames(env))
	completeWith(c, "profile", profileNames(env))
	return c
}

// factory runs the requests and writes the results as they come.
func factory(ctx context.Context, env *Env, in io.Reader, out io.Writer, fleetAndProfile [2]string) (*api.FactoryReport, error) {
	admin := env.admin()
	admin.HTTP.Timeout = 0 // of the whole run; the server bounds each line
	w := bufio.NewWriter(out)
	enc := json.NewEncoder(w)
	done := 0
	for l, err := range admin.Factory(ctx, fleetAndProfile[0], fleetAndProfile[1], in) {
		if err != nil {
			err = errors.Join(err, w.Flush())
			if done > 0 {
				env.stderr().linef("%d done; run it again with the same input", done)
			}
			return nil, err
		}
		if l.Report != nil {
			return l.Report, w.Flush()
		}
		if err := enc.Encode(l.FactoryResult); err != nil {
			return nil, fmt.Errorf("couldn't write the results: %w", err)
		}
		if done++; done%progressEvery == 0 {
			env.stderr().linef("%d done", done)
		}
	}
	return nil, w.Flush()
}

func tellFactory(env *Env, r *api.FactoryReport) error {
	env.stderr().done("%d granted, %d granted before, %d refused, in %d ms", r.Granted, r.Again, r.Refused, r.TookMillis)
	switch {
	case r.Error != nil:
		env.explain(countersign.Errorf(countersign.Code(r.Error.Code), "the input was not read to its end: %s", r.Error.Message).WithNext(r.Error.Next))
		return failed(exitPartly)
	case r.Refused > 0 && r.Granted+r.Again == 0:
		return failed(exitRefused)
	case r.Refused > 0:
		return failed(exitPartly)
	}
	return nil
}
