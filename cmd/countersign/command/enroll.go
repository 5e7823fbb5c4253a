package command

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func enrollCommand(env *Env) *cobra.Command {
	return group("enroll", "Let devices in", nil,
		enrollToken(env), enrollClaim(env), enrollKey(env), enrollGroup(env), enrollDerive(env), enrollThumbprint(env), enrollTPM(env),
		enrollFactory(env), enrollList(env),
		listCommand(env, &cobra.Command{Use: "tokens", Short: "List enrollment tokens, without their secrets"}, all((*sdk.Admin).Tokens), credentialView(env)), enrollStop(env),
		enrollPending(env),
		decide(env, &cobra.Command{Use: "approve ID", Short: "Let a waiting enrollment through at the device's next try"}, (*sdk.Admin).Approve),
		decide(env, &cobra.Command{Use: "reject ID", Short: "Turn a waiting enrollment down"}, (*sdk.Admin).Reject), enrollExplain(env), enrollAdvise(env))
}

// bounds are the flags of a credential that may be shared.
type bounds struct {
	api.Bounds
	ttl       time.Duration
	notBefore string
}

func boundFlags(env *Env, c *cobra.Command, b *bounds) {
	f := c.Flags()
	fleetFlag(env, c, &b.Fleet, "fleet that it lets in to (default the device's, else \"default\")")
	f.IntVar(&b.Uses, "uses", 1, "how many devices it may enroll")
	durationFlag(f, &b.ttl, "ttl", time.Hour, "how long it is good")
	f.StringVar(&b.notBefore, "not-before", "", "when it begins to be good: a length from now such as 2h, or RFC 3339")
	f.StringSliceVar(&b.Networks, "network", nil, "CIDR that it may be used from; may be repeated")
	f.IntVar(&b.PerMinute, "per-minute", 0, "how often it may be used in a minute; 0 is any")
	f.StringVar(&b.Label, "label", "", "your name for it")
}

// read checks what the flags say and returns it as the server wants it.
func (b *bounds) read(env *Env) (api.Bounds, error) {
	if b.ttl < time.Second {
		return b.Bounds, usagef("--ttl %s is less than a second", b.ttl)
	}
	if b.Uses < 1 {
		return b.Bounds, usagef("--uses %d is less than 1", b.Uses)
	}
	b.TTLSeconds = int64(b.ttl / time.Second)
	if b.notBefore == "" {
		return b.Bounds, nil
	}
	var err error
	b.NotBefore, err = env.ahead("--not-before", b.notBefore)
	return b.Bounds, err
}

func enrollToken(env *Env) *cobra.Command {
	var b bounds
	var device, from string
	var devices []string
	c := &cobra.Command{
		Use: "token", Short: "Make an enrollment token, or one for each device of a file; they are shown this once",
		Example: `  countersign enroll token --fleet default --uses 1 --ttl 1h -o name > token.txt
  countersign enroll token --device pump-7
  countersign enroll token --uses 500 --devices pump-0001..pump-0500 --network 10.1.0.0/16 --per-minute 10
  countersign enroll token --from devices.csv --ttl 720h > tokens.csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bounds, err := b.read(env)
			if err != nil {
				return err
			}
			if from != "" {
				if device != "" || len(devices) > 0 || cmd.Flags().Changed("uses") || env.output != formatTable {
					return usagef("--from makes one token for each device, in the form of its file: leave --device, --devices, --uses and -o out")
				}
				return bulkTokens(cmd.Context(), env, bounds, from)
			}
			made, err := env.admin().CreateToken(cmd.Context(), api.NewToken{
				Fleet: bounds.Fleet, Device: device, Uses: bounds.Uses, TTLSeconds: bounds.TTLSeconds, Label: bounds.Label,
				NotBefore: bounds.NotBefore, PerMinute: bounds.PerMinute, Networks: bounds.Networks, Devices: devices,
			})
			if err != nil {
				return err
			}
			return showToken(env, made, b.ttl)
		},
	}
	boundFlags(env, c, &b)
	deviceFlag(env, c, &device, "the one id that it may enroll")
	c.Flags().StringSliceVar(&devices, "devices", nil, "ids that it may enroll: patterns with * and ?, ranges such as pump-0001..pump-0500")
	c.Flags().StringVar(&from, "from", "", "CSV with a column id, or JSON lines with a field id; - is standard input")
	return c
}

func showToken(env *Env, made *api.IssuedToken, ttl time.Duration) error {
	if env.output != formatTable {
		return show(env, *made, view[api.IssuedToken]{name: func(t api.IssuedToken) string { return t.Secret }})
	}
	who := "any device of fleet " + made.Fleet
	switch {
	case made.Device != "":
		who = "device " + made.Device + " of fleet " + made.Fleet
	case len(made.Devices) > 0:
		who = strings.Join(made.Devices, ", ") + " of fleet " + made.Fleet
	}
	p := env.stderr()
	p.done("token for %s, good %s, for %s; it is not shown again", who, times(made.Uses), span(ttl))
	p.next("give it to the device, as the password of EST simpleenroll with any user name")
	env.stdout().linef("%s", made.Secret)
	return nil
}

func credentialView(env *Env) view[api.Credential] {
	return viewOf[api.Credential](env, "CREDENTIAL id, KIND kind, FLEET fleet, DEVICE device, STATE state, USED, EXPIRES until:expires_at, BY created_by, LABEL label, REASON reason", usedOf)
}

// usedOf returns the uses of a credential, out of those that it has.
func usedOf(c api.Credential) string {
	if c.Uses == 0 {
		return strconv.Itoa(c.Used)
	}
	return ratio(c.Used, c.Uses)
}

func enrollList(env *Env) *cobra.Command {
	var f api.CredentialFilter
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List what lets devices in, newest first, without secrets"}, filtered((*sdk.Admin).Credentials, &f), credentialView(env))
	choiceFlag(c, &f.Kind, "kind", "only this kind", "token", "claim", "key", "group", "thumbprint", "tpm")
	fleetFlag(env, c, &f.Fleet, "only this fleet")
	deviceFlag(env, c, &f.Device, "only what is bound to this device")
	return c
}

func enrollStop(env *Env) *cobra.Command {
	var why api.Act
	c := actCommand(env, &cobra.Command{Use: "stop ID --reason TEXT", Short: "End a credential at once; what it let in stays"}, credentialIDs(env), with((*sdk.Admin).StopCredential, &why), func(p printer, made *api.StoppedCredential) string {
		p.done("%s %s %s; it let in %d, %d sessions closed", made.Kind, made.ID, stoppedWord(made.Already), made.Used, made.Sessions)
		return made.ID
	})
	reasonFlag(c, &why.Note)
	return needsReason(c, "")
}

func enrollPending(env *Env) *cobra.Command {
	f := api.WaitingFilter{}
	c := listCommand(env, &cobra.Command{Use: "pending", Short: "List enrollments that wait for an operator, oldest first"}, filtered((*sdk.Admin).Enrollments, &f), viewOf[api.Waiting](env, "REQUEST id, STATE state, DEVICE device, FLEET fleet, METHOD method, SINCE created_at, EXPIRES until:expires_at, FROM remote, FACTS pairs:facts"))
	c.Flags().StringVar(&f.State, "state", "waiting", "waiting, approved, rejected or done; empty is all")
	complete(c, "state", "waiting", "approved", "rejected", "done")
	return c
}

func decide(env *Env, c *cobra.Command, do func(*sdk.Admin, context.Context, string, api.Act) (*api.Waiting, error)) *cobra.Command {
	var note api.Act
	c.Flags().StringVar(&note.Note, "note", "", "why, in your words; the device reads it in a rejection")
	return actCommand(env, c, waitingIDs(env), with(do, &note), func(p printer, w *api.Waiting) string {
		p.done("enrollment of %s by %s %s", w.Device, w.Method, w.State)
		return w.ID
	})
}

func enrollExplain(env *Env) *cobra.Command {
	var e api.Explain
	var csr, token, cert string
	c := &cobra.Command{
		Use: "explain --csr FILE", Short: "Tell what would become of an enrollment, and why; nothing is issued",
		Example: `  countersign enroll explain --csr device.csr --token-file token.txt
  countersign enroll explain --csr device.csr --cert idevid.pem --fleet pumps --from 10.1.2.3`,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			return show(env, *x, explanationView(env))
		},
	}
	f := c.Flags()
	f.StringVar(&csr, "csr", "", "the request, PKCS #10 in PEM, base64 or DER")
	f.StringVar(&token, "token-file", "", "file with the enrollment token or SAS token; - is standard input")
	f.StringVar(&cert, "cert", "", "the client certificate and its chain, PEM")
	fleetFlag(env, c, &e.Fleet, "fleet that the device asks for")
	f.StringVar(&e.Remote, "from", "", "address that the device would come from")
	return needs(c, "csr", "")
}

func explanationView(env *Env) view[api.Explanation] {
	return viewOf[api.Explanation](env, "DECISION decision, RULE reason, CODE code, NEXT next, DEVICE device, FLEET fleet, METHOD method, EVIDENCE evidence, PROFILE profile, FACTS pairs:facts")
}

// The files of a claim.
const (
	claimChain = "claim.pem"
	claimKey   = "claim.key"
)

func enrollClaim(env *Env) *cobra.Command {
	var b bounds
	var devices []string
	var csr, out string
	var temporary bool
	c := &cobra.Command{
		Use: "claim", Short: "Issue a claim certificate, which many devices share until each has its own",
		Example: `  countersign enroll claim --label batch-3 --uses 500 --ttl 720h --devices pump-0001..pump-0500 --network 10.1.0.0/16 --out claim
  countersign enroll claim --temporary -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bounds, err := b.read(env)
			if err != nil {
				return err
			}
			n := api.NewClaim{Bounds: bounds, Devices: devices, Temporary: temporary}
			if out == "" && env.output != formatJSON && env.output != formatYAML {
				return usagef("--out is missing: a folder for %s and %s; or print it all with -o json", claimChain, claimKey)
			}
			if csr != "" {
				if n.CSR, err = readRequest(env, csr); err != nil {
					return err
				}
			}
			if err := freshFolder(out, claimChain, claimKey); err != nil {
				return err
			}
			made, err := env.admin().CreateClaim(cmd.Context(), n)
			if err != nil {
				return err
			}
			return showClaim(env, made, out)
		},
	}
	boundFlags(env, c, &b)
	c.Flags().StringSliceVar(&devices, "devices", nil, "ids that it may enroll: patterns with * and ?, ranges such as pump-0001..pump-0500")
	c.Flags().StringVar(&csr, "csr", "", "PKCS #10 request for a key of your own; else the server makes one and shows it once")
	c.Flags().StringVar(&out, "out", "", "folder for the chain and the key")
	c.Flags().BoolVar(&temporary, "temporary", false, "one use within five minutes, for a person at the device")
	return c
}

func showClaim(env *Env, made *api.IssuedClaim, out string) error {
	if out == "" {
		return show(env, *made, view[api.IssuedClaim]{})
	}
	files := map[string]string{claimChain: made.Chain, claimKey: made.Key}
	for name, text := range files {
		if text == "" {
			continue
		}
		if err := writeNew(filepath.Join(out, name), text); err != nil {
			return err
		}
	}
	env.stderr().done("claim %s for fleet %s, good %s, expires in %s, in %s; its key is not shown again",
		made.ID, made.Fleet, times(made.Uses), env.until(made.ExpiresAt), out)
	env.stderr().next("put both files into the devices; if they leak: countersign enroll stop %s", made.ID)
	return acted(env, made.Credential, made.ID)
}
