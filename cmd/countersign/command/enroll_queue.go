package command

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func enrollPending(env *Env) *cobra.Command {
	f := api.WaitingFilter{}
	id := func(w api.Waiting) string { return w.ID }
	c := listCommand(env, &cobra.Command{Use: "pending", Short: "List enrollments that wait for an operator, oldest first"}, filtered((*sdk.Admin).Enrollments, &f), view[api.Waiting]{name: id, cols: []col[api.Waiting]{
		{"REQUEST", id},
		{"STATE", func(w api.Waiting) string { return w.State }},
		{"DEVICE", func(w api.Waiting) string { return w.Device }},
		{"FLEET", func(w api.Waiting) string { return w.Fleet }},
		{"METHOD", func(w api.Waiting) string { return w.Method }},
		{"SINCE", func(w api.Waiting) string { return env.ago(w.CreatedAt) }},
		{"EXPIRES", func(w api.Waiting) string { return env.until(w.ExpiresAt) }},
		{"FROM", func(w api.Waiting) string { return w.Remote }},
		{"FACTS", func(w api.Waiting) string { return pairs(w.Facts) }},
	}})
	c.Flags().StringVar(&f.State, "state", "waiting", "waiting, approved, rejected or done; empty is all")
	complete(c, "state", "waiting", "approved", "rejected", "done")
	return c
}

// pairs writes a map as one line, in the order of its keys.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] != "" {
			out = append(out, k+"="+m[k])
		}
	}
	return strings.Join(out, " ")
}

func enrollApprove(env *Env) *cobra.Command {
	return decide(env, "approve", "Let a waiting enrollment through at the device's next try", (*sdk.Admin).Approve)
}

func enrollReject(env *Env) *cobra.Command {
	return decide(env, "reject", "Turn a waiting enrollment down", (*sdk.Admin).Reject)
}

func decide(env *Env, verb, short string, do func(*sdk.Admin, context.Context, string, api.Act) (*api.Waiting, error)) *cobra.Command {
	var act api.Act
	c := &cobra.Command{
		Use: verb + " ID", Short: short, ValidArgsFunction: first(waitingIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := do(env.admin(), cmd.Context(), args[0], act)
			if err != nil {
				return err
			}
			env.stderr().done("enrollment of %s by %s %s", w.Device, w.Method, w.State)
			return acted(env, *w, w.ID)
		},
	}
	c.Flags().StringVar(&act.Note, "note", "", "why, in your words; the device is told of a rejection")
	return c
}

func waitingIDs(env *Env) completer {
	return live(env, func(c *sdk.Admin, ctx context.Context) iter.Seq2[api.Waiting, error] {
		return c.Enrollments(ctx, api.WaitingFilter{State: "waiting"})
	}, func(w api.Waiting) string { return w.ID })
}

func enrollExplain(env *Env) *cobra.Command {
	var e api.Explain
	var csr, token, cert string
	c := &cobra.Command{
		Use: "explain --csr FILE", Short: "Tell what would become of an enrollment, and why; nothing is issued",
		Example: `  countersign enroll explain --csr device.csr --token-file token.txt
  countersign enroll explain --csr device.csr --cert idevid.pem --fleet pumps --from 10.1.2.3`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if csr == "" {
				return usagef("--csr is missing")
			}
			var err error
			if e.CSR, err = readRequest(env, csr); err != nil {
				return err
			}
			for file, into := range map[string]*string{token: &e.Token, cert: &e.Certificates} {
				if file == "" {
					continue
				}
				b, err := env.readInput(file)
				if err != nil {
					return err
				}
				*into = string(b)
			}
			e.Token = strings.TrimSpace(e.Token)
			x, err := env.admin().Explain(cmd.Context(), e)
			if err != nil {
				return err
			}
			return show(env, *x, explanationView())
		},
	}
	f := c.Flags()
	f.StringVar(&csr, "csr", "", "the request, PKCS #10 in PEM, base64 or DER")
	f.StringVar(&token, "token-file", "", "file with the enrollment token or SAS token; - is standard input")
	f.StringVar(&cert, "cert", "", "the client certificate and its chain, PEM")
	f.StringVar(&e.Fleet, "fleet", "", "fleet that the device asks for")
	f.StringVar(&e.Remote, "from", "", "address that the device would come from")
	completeWith(c, "fleet", fleetNames(env))
	return c
}

func explanationView() view[api.Explanation] {
	return view[api.Explanation]{
		name: func(x api.Explanation) string { return x.Decision },
		cols: []col[api.Explanation]{
			{"DECISION", func(x api.Explanation) string { return x.Decision }},
			{"RULE", func(x api.Explanation) string { return x.Reason }},
			{"CODE", func(x api.Explanation) string { return x.Code }},
			{"NEXT", func(x api.Explanation) string { return x.Next }},
			{"DEVICE", func(x api.Explanation) string { return x.Device }},
			{"FLEET", func(x api.Explanation) string { return x.Fleet }},
			{"METHOD", func(x api.Explanation) string { return x.Method }},
			{"EVIDENCE", func(x api.Explanation) string { return x.Evidence }},
			{"PROFILE", func(x api.Explanation) string { return x.Profile }},
			{"FACTS", func(x api.Explanation) string { return pairs(x.Facts) }},
		},
	}
}
