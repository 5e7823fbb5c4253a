package command

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func enrollCommand(env *Env) *cobra.Command {
	return group("enroll", "Let devices in", nil,
		enrollToken(env), enrollClaim(env), enrollKey(env), enrollGroup(env), enrollDerive(env), enrollThumbprint(env), enrollTPM(env),
		enrollFactory(env), enrollList(env), enrollTokens(env), enrollStop(env),
		enrollPending(env), enrollApprove(env), enrollReject(env), enrollExplain(env), enrollAdvise(env))
}

// bounds are the flags of a credential that may be shared.
type bounds struct {
	api.Bounds
	ttl       time.Duration
	notBefore string
}

func boundFlags(env *Env, c *cobra.Command, b *bounds) {
	f := c.Flags()
	f.StringVar(&b.Fleet, "fleet", "", "fleet that it lets in to (default the device's, else \"default\")")
	f.IntVar(&b.Uses, "uses", 1, "how many devices it may enroll")
	durationFlag(f, &b.ttl, "ttl", time.Hour, "how long it is good")
	f.StringVar(&b.notBefore, "not-before", "", "when it begins to be good: a length from now such as 2h, or RFC 3339")
	f.StringSliceVar(&b.Networks, "network", nil, "CIDR that it may be used from; may be repeated")
	f.IntVar(&b.PerMinute, "per-minute", 0, "how often it may be used in a minute; 0 is any")
	f.StringVar(&b.Label, "label", "", "your name for it")
	completeWith(c, "fleet", fleetNames(env))
}

// read checks what the flags say and gives it as the server wants it.
func (b *bounds) read(now time.Time) (api.Bounds, error) {
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
	if d, err := countersign.ParseSpan(b.notBefore); err == nil {
		b.NotBefore = now.Add(d)
		return b.Bounds, nil
	}
	t, err := time.Parse(time.RFC3339, b.notBefore)
	if err != nil {
		return b.Bounds, usagef("--not-before %q is neither a length such as 2h nor a time such as 2026-01-31T12:00:00Z", b.notBefore)
	}
	b.NotBefore = t
	return b.Bounds, nil
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
			bounds, err := b.read(env.Now())
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
	c.Flags().StringVar(&device, "device", "", "the one id that it may enroll")
	c.Flags().StringSliceVar(&devices, "devices", nil, "ids that it may enroll: patterns with * and ?, ranges such as pump-0001..pump-0500")
	c.Flags().StringVar(&from, "from", "", "CSV with a column id, or JSON lines with a field id; - is standard input")
	completeWith(c, "device", deviceIDs(env))
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

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func credentialView(env *Env) view[api.Credential] {
	id := func(c api.Credential) string { return c.ID }
	return view[api.Credential]{name: id, cols: []col[api.Credential]{
		{"CREDENTIAL", id},
		{"KIND", func(c api.Credential) string { return c.Kind }},
		{"FLEET", func(c api.Credential) string { return c.Fleet }},
		{"DEVICE", func(c api.Credential) string { return c.Device }},
		{"STATE", func(c api.Credential) string { return c.State }},
		{"USED", usedOf},
		{"EXPIRES", func(c api.Credential) string { return env.until(c.ExpiresAt) }},
		{"BY", func(c api.Credential) string { return c.CreatedBy }},
		{"LABEL", func(c api.Credential) string { return c.Label }},
		{"REASON", func(c api.Credential) string { return c.Reason }},
	}}
}

// usedOf tells the uses of a credential, out of those that it has.
func usedOf(c api.Credential) string {
	if c.Uses == 0 {
		return strconv.Itoa(c.Used)
	}
	return ratio(c.Used, c.Uses)
}

func enrollList(env *Env) *cobra.Command {
	var f api.CredentialFilter
	c := listCommand(env, &cobra.Command{Use: "list", Short: "List what lets devices in, newest first, without secrets"}, filtered((*sdk.Admin).Credentials, &f), credentialView(env))
	c.Flags().StringVar(&f.Kind, "kind", "", "only this kind: token, claim, key, group, thumbprint, tpm")
	c.Flags().StringVar(&f.Fleet, "fleet", "", "only this fleet")
	c.Flags().StringVar(&f.Device, "device", "", "only what is bound to this device")
	complete(c, "kind", "token", "claim", "key", "group", "thumbprint", "tpm")
	completeWith(c, "fleet", fleetNames(env))
	completeWith(c, "device", deviceIDs(env))
	return c
}

func enrollTokens(env *Env) *cobra.Command {
	return listCommand(env, &cobra.Command{Use: "tokens", Short: "List enrollment tokens, without their secrets"}, (*sdk.Admin).Tokens, credentialView(env))
}

func enrollStop(env *Env) *cobra.Command {
	var act api.Act
	c := &cobra.Command{
		Use: "stop ID --reason TEXT", Short: "End a credential at once; what it let in stays", ValidArgsFunction: first(credentialIDs(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if act.Note == "" {
				return usagef("--reason is missing")
			}
			made, err := env.admin().StopCredential(cmd.Context(), args[0], act)
			if err != nil {
				return err
			}
			env.stderr().done("%s %s %s; it let in %d, %d sessions closed", made.Kind, made.ID, stoppedWord(made.Already), made.Used, made.Sessions)
			return acted(env, *made, made.ID)
		},
	}
	c.Flags().StringVar(&act.Note, "reason", "", "why, in your words")
	return c
}

// stoppedWord is what became of a credential, or what had become of it before.
func stoppedWord(already bool) string {
	if already {
		return "was stopped already"
	}
	return "stopped"
}

func credentialIDs(env *Env) completer {
	return live(env, func(c *sdk.Admin, ctx context.Context) iter.Seq2[api.Credential, error] {
		return c.Credentials(ctx, api.CredentialFilter{})
	}, func(c api.Credential) string { return c.ID })
}
