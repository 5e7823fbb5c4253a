package command

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/simulate"
)

// errSimulation says that the report has something to worry about.
var errSimulation = errors.New("the server missed something, harmed an honest device or gave a false alarm: see the report")

func simulateCommand(env *Env) *cobra.Command {
	var o simulate.Options
	c := &cobra.Command{
		Use:   "simulate",
		Short: "Play honest and stolen devices against the running server, and tell what it noticed",
		Long: `simulate enrolls devices into fleets that it makes for itself, sim-..., has them live on loopback addresses
of their own, and plays stories beside them: stolen keys, guessed secrets, all devices coming back at once. The
report says what was found, how fast, and what was a false alarm. In the end it retires its devices, ends the
blocks and closes the alerts that it caused. The fleets and the events stay. The exit code is 1 if something
was missed.

The server must run on this machine. Findings name simulated devices, but notifications that you set up for
the server are sent: play on a server that is for trying.

Stories: ` + strings.Join(simulate.StoryNames(), ", ") + `. twin and offline need more than six minutes.`,
		Example: "  countersign simulate\n  countersign simulate --devices 200 --duration 12m\n  countersign simulate --stories steady,clone --seed 7 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Endpoints, err = endpoints(env); err != nil {
				return err
			}
			text, err := os.ReadFile(o.Endpoints.Roots)
			if err != nil {
				return fmt.Errorf("read the roots: %w", err)
			}
			o.Roots = x509.NewCertPool()
			o.Roots.AppendCertsFromPEM(text)
			o.Admin, o.Now, o.Progress = env.admin(), env.Now, env.stderr().linef
			report, err := simulate.Run(cmd.Context(), o)
			if report == nil {
				return err
			}
			if e := showSimulation(env, report); e != nil || err != nil {
				return errors.Join(err, e)
			}
			if report.Failed() {
				return errSimulation
			}
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&o.Devices, "devices", 50, "honest devices, up to "+strconv.Itoa(simulate.MaxDevices))
	durationFlag(f, &o.Duration, "duration", time.Minute, "how long they live; at least "+simulate.MinDuration.String())
	f.StringSliceVar(&o.Stories, "stories", nil, "comma-separated `names` of what to play; default all")
	f.StringVar(&o.Fleet, "fleet", "", "name of the fleet that is made; it begins with "+simulate.Prefix)
	f.Uint64Var(&o.Seed, "seed", 1, "the same one plays the same, as far as time allows")
	f.BoolVar(&o.Keep, "keep", false, "leave the devices in service, and the alerts open")
	complete(c, "stories", simulate.StoryNames()...)
	return c
}

// endpoints are those of the server that runs on the data folder.
func endpoints(env *Env) (api.Endpoints, error) {
	var e api.Endpoints
	text, err := os.ReadFile(filepath.Join(env.dataDir(), api.EndpointsFile))
	if errors.Is(err, os.ErrNotExist) {
		return e, &sdk.Unreachable{Err: err}
	}
	if err != nil {
		return e, fmt.Errorf("find the server: %w", err)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return e, fmt.Errorf("read %s: %w", api.EndpointsFile, err)
	}
	return e, nil
}

// showSimulation prints the report.
func showSimulation(env *Env, r *simulate.Report) error {
	switch env.output {
	case formatJSON:
		return writeJSON(env.stdout().w, r)
	case formatYAML:
		return writeYAML(env.stdout().w, r)
	case formatName:
		env.stdout().linef("%s", r.Fleet)
		return nil
	}
	rows := [][]string{{"STORY", "RULE", "FOUND", "P50", "MAX", ""}}
	for _, s := range r.Stories {
		note := s.Skipped + s.Error
		if s.Attacked > 0 && note == "" {
			note = fmt.Sprintf("%d of %d devices went on working", s.Unharmed, s.Attacked)
		}
		if len(s.Expected) == 0 && s.Name != "herd" {
			rows = append(rows, []string{s.Name, "", "", "", "", note})
		}
		for _, e := range s.Expected {
			rows = append(rows, []string{s.Name, e.Rule, fmt.Sprintf("%d/%d", e.Found, e.Subjects), seconds(e.P50), seconds(e.Max), note})
			note = ""
		}
	}
	if h := r.Herd; h != nil {
		rows = append(rows, []string{"herd", "", fmt.Sprintf("%d/%d back", h.Back, h.Devices), seconds(h.P50), seconds(h.Max), "p99 " + seconds(h.P99)})
	}
	p := env.stdout()
	if err := writeTable(p, rows); err != nil {
		return err
	}
	if s := r.Steady; s != nil {
		p.linef("steady: %d devices, %d messages, %d reconnects, %d renewals, %d connections refused at first", s.Devices, s.Messages, s.Reconnects, s.Renewals, s.Refused)
		p.linef("false alarms: %d (hints of severity info: %d)", len(r.FalseAlarms), r.Hints)
	}
	for _, f := range r.FalseAlarms {
		p.linef("  %s  %s  %s: %s", f.At.Format(time.TimeOnly), f.Rule, f.Subject, f.Summary)
	}
	return nil
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 2, 64) + " s" }
