package command

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

// maxRow bounds one JSON line of a list of devices, with what else a factory
// keeps there.
const maxRow = 64 << 10

// bulkTokens makes a token for each device that a file lists and prints them in
// the file's form and order. It holds one request's devices at a time.
func bulkTokens(ctx context.Context, env *Env, b api.Bounds, from string) error {
	in, err := open(env, from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	ids, out, err := bulkForm(env, bufio.NewReader(in))
	if err != nil {
		return err
	}
	made := 0
	ask := func(batch []string) error {
		got, err := env.admin().CreateTokens(ctx, api.NewTokens{Bounds: b, IDs: batch})
		if err != nil {
			return err
		}
		made += len(got.Tokens)
		return out(got.Tokens)
	}
	err = batches(ids, api.MaxBulk, ask)
	switch {
	case err == nil:
		env.stderr().done("%d tokens, each good once; they are not shown again", made)
		return nil
	case made == 0:
		return err
	}
	env.explain(fmt.Errorf("stopped after %d tokens, which are good: %w", made, err))
	return failed(exitPartly)
}

// batches calls do with the items of seq, size at a time.
func batches(seq iter.Seq2[string, error], size int, do func([]string) error) error {
	batch := make([]string, 0, size)
	for id, err := range seq {
		if err != nil {
			return err
		}
		if batch = append(batch, id); len(batch) == size {
			if err := do(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return do(batch)
}

// bulkForm distinguishes JSON lines from CSV by the first character, and returns how to read
// and how to write it.
func bulkForm(env *Env, in *bufio.Reader) (ids iter.Seq2[string, error], out func([]api.DeviceToken) error, err error) {
	first, err := in.Peek(1)
	if errors.Is(err, io.EOF) {
		return nil, nil, usagef("--from: the file is empty")
	}
	if err != nil {
		return nil, nil, err
	}
	if first[0] == '{' {
		enc := json.NewEncoder(env.Out)
		return jsonIDs(in), func(tokens []api.DeviceToken) error {
			for _, t := range tokens {
				if err := enc.Encode(t); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
	ids, err = csvIDs(in)
	if err != nil {
		return nil, nil, err
	}
	w := csv.NewWriter(env.Out)
	head := []string{"id", "token"}
	return ids, func(tokens []api.DeviceToken) error {
		if head != nil {
			_ = w.Write(head) // Flush and Error tell
			head = nil
		}
		for _, t := range tokens {
			_ = w.Write([]string{t.ID, t.Token})
		}
		w.Flush()
		return w.Error()
	}, nil
}

func csvIDs(in io.Reader) (iter.Seq2[string, error], error) {
	r := csv.NewReader(in)
	r.ReuseRecord = true
	head, err := r.Read()
	if err != nil {
		return nil, usagef("--from: the CSV cannot be read: %v", err)
	}
	column := slices.Index(head, "id")
	if column < 0 {
		return nil, usagef("--from: the first line of the CSV names no column id")
	}
	return func(yield func(string, error) bool) {
		for {
			row, err := r.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield("", usagef("--from: the CSV cannot be read: %v", err))
				return
			}
			if !yield(row[column], nil) {
				return
			}
		}
	}, nil
}

func jsonIDs(in io.Reader) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		lines := bufio.NewScanner(in)
		lines.Buffer(make([]byte, 0, 4<<10), maxRow)
		for n := 1; lines.Scan(); n++ {
			if len(lines.Bytes()) == 0 {
				continue
			}
			var row struct{ ID string }
			if err := json.Unmarshal(lines.Bytes(), &row); err != nil || row.ID == "" {
				yield("", usagef("--from: line %d is no JSON object with an id", n))
				return
			}
			if !yield(row.ID, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield("", fmt.Errorf("couldn't read the devices: %w", err))
		}
	}
}

// progressEvery is how many items a line of progress means.
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
			return printFactory(env, report)
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

func printFactory(env *Env, r *api.FactoryReport) error {
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
