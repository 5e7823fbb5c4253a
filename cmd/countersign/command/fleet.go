package command

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/spf13/cobra"
)

func fleetCommand(env *Env) *cobra.Command {
	return group("fleet", "Fleets: the rules that groups of devices live by", []string{"fleets"},
		listCommand(env, &cobra.Command{Use: "list", Short: "List fleets"}, all((*sdk.Admin).Fleets), fleetView(env)), fleetGet(env), fleetSet(env), fleetRule(env))
}

func fleetView(env *Env) view[api.Fleet] {
	return viewOf[api.Fleet](env, "FLEET name, ISSUER issuer, PROFILE profile, METHODS methods, OVERLAP span:overlap_seconds, TRUST DOMAIN trust_domain")
}

// ruledView is fleetView with the rules, each on a line of its own.
func ruledView(env *Env, f *api.Fleet) (view[api.Fleet], error) {
	v := fleetView(env)
	if f.Rules == nil {
		return v, nil
	}
	b, err := json.Marshal(f.Rules)
	if err != nil {
		return v, err
	}
	var rules map[string]json.RawMessage
	if err := json.Unmarshal(b, &rules); err != nil {
		return v, err
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		v.cols = append(v.cols, col[api.Fleet]{"RULE " + name, func(api.Fleet) string { return strings.Trim(string(rules[name]), `"`) }})
	}
	return v, nil
}

// rulesFrom reads rules in YAML, which JSON is too. A rule that is not known is an error.
func rulesFrom(env *Env, file string) (*api.Rules, error) {
	text, err := env.readInput(file)
	if err != nil {
		return nil, err
	}
	var r api.Rules
	if err := readYAML(text, &r); err != nil {
		return nil, usagef("--rules: %s cannot be read: %v", file, err)
	}
	return &r, nil
}

func fleetGet(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show one fleet", ValidArgsFunction: first(fleetNames(env)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := env.admin().Fleet(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			p, err := env.admin().Policy(cmd.Context(), f.Name)
			if err != nil {
				return err
			}
			v, err := ruledView(env, f)
			if err != nil {
				return err
			}
			v.cols = append(v.cols, col[api.Fleet]{"POLICY", func(api.Fleet) string { return policyVersion(p.Version) }})
			return show(env, *f, v)
		},
	}
}

func fleetSet(env *Env) *cobra.Command {
	var issuer, profile, domain, rules string
	var respond []string
	var methods, kinds []string
	var guests, yes bool
	var overlap time.Duration
	c := &cobra.Command{
		Use: "set NAME", Short: "Create or change a fleet; what no flag names stays as it is",
		Example: `  countersign fleet set pumps --overlap 72h
  countersign fleet set pumps --method token --method idevid --rules rules.yaml
  countersign fleet set pumps --access certificate,secret
  countersign fleet set pumps --respond shared_certificate=alert,suspend --respond '*=alert,mail'`,
		ValidArgsFunction: first(fleetNames(env)),
	}
	doCommand(env, c, func(ctx context.Context, args []string) (_ *api.Fleet, err error) {
		seconds := int64(overlap / time.Second)
		p := api.PutFleet{
			Issuer: changed(c, "issuer", &issuer), Profile: changed(c, "profile", &profile), TrustDomain: changed(c, "trust-domain", &domain),
			Methods: changed(c, "method", &methods), OverlapSeconds: changed(c, "overlap", &seconds),
			AccessKinds: changed(c, "access", &kinds), Guests: changed(c, "guests", &guests),
		}
		if rules != "" {
			if p.Rules, err = rulesFrom(env, rules); err != nil {
				return nil, err
			}
		}
		if p.Respond, err = respondFlag(respond); err != nil {
			return nil, err
		}
		if err := confirmRules(ctx, env, args[0], p.Rules, yes); err != nil {
			return nil, err
		}
		return env.admin().PutFleet(ctx, args[0], p)
	}, func(p printer, f *api.Fleet) string {
		p.done("fleet %s saved", f.Name)
		p.next("%s", enrollStep(f.Name, f.Methods))
		return f.Name
	})
	c.Flags().StringVar(&issuer, "issuer", "", "id of the authority that issues to it")
	c.Flags().StringVar(&profile, "profile", "", "certificate profile")
	c.Flags().StringSliceVar(&methods, "method", nil, "evidence that may enroll: token, claim, idevid, thumbprint, key, group or tpm; may be repeated")
	c.Flags().StringVar(&rules, "rules", "", "file with all rules of the fleet, YAML or JSON; - is standard input. Rules that it leaves out end; see fleet rule set")
	yesFlag(c, &yes)
	c.Flags().StringArrayVar(&respond, "respond", nil, "rule=acts: what follows on a finding, as note, alert, suspend, revoke, block, webhook, mail, syslog; nothing after = ends it; may be repeated")
	durationFlag(c.Flags(), &overlap, "overlap", 0, "how long a superseded certificate is still accepted")
	c.Flags().StringVar(&domain, "trust-domain", "", "SPIFFE trust domain; empty names devices by URN")
	c.Flags().StringSliceVar(&kinds, "access", nil, "what devices may connect with: certificate, secret, scram, password, sas or token; may be repeated")
	c.Flags().BoolVar(&guests, "guests", false, "let clients connect that show nothing, as guests")
	complete(c, "access", "certificate", "secret", "scram", "password", "sas", "token")
	complete(c, "method", "token", "claim", "idevid", "thumbprint", "key", "group", "tpm")
	completeWith(c, "issuer", authorityIDs(env))
	completeWith(c, "profile", profileNames(env))
	return c
}

// confirmRules shows how new rules differ from those of a fleet that there is, and asks
// where rules would end: a file holds all of them.
func confirmRules(ctx context.Context, env *Env, fleet string, rules *api.Rules, yes bool) error {
	if rules == nil {
		return nil
	}
	now, err := fleetRules(ctx, env, fleet)
	if countersign.CodeOf(err) == countersign.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	to, err := rulesetOf(rules)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(now.patchTo(to))
	if err != nil {
		return err
	}
	tried, err := env.admin().PatchRules(ctx, fleet, patch, true)
	switch {
	case err == nil:
		if to, err = rulesetOf(tried.Rules); err != nil { // as the server writes them
			return err
		}
	case countersign.CodeOf(err) != countersign.BadRequest: // else they may fit with what is set beside them
		return err
	}
	d := now.diff(to)
	d.show(env.stderr())
	if len(d.dropped) == 0 {
		return nil
	}
	return env.confirm(yes, fmt.Sprintf("The file has no %s: end these rules of fleet %s?", strings.Join(d.dropped, ", "), fleet))
}

func profileCommand(env *Env) *cobra.Command {
	v := viewOf(env, "PROFILE name, VALIDITY, USAGE, KEYS keys, DESCRIPTION description", validity, func(p api.Profile) string {
		return strings.Join(append(p.ExtKeyUsage, p.KeyUsage...), ",")
	})
	return group("profile", "Certificate profiles: what a certificate may contain", []string{"profiles"},
		listCommand(env, &cobra.Command{Use: "list", Short: "List profiles"}, all((*sdk.Admin).Profiles), v),
		getCommand(env, &cobra.Command{Use: "get NAME", Short: "Show one profile"}, profileNames(env), (*sdk.Admin).Profile, v))
}

func validity(p api.Profile) string {
	if p.NoExpiry {
		return "no expiry"
	}
	return span(time.Duration(p.ValiditySeconds) * time.Second)
}

// nextSteps are the commands by which an operator lets a device in, by what the
// fleet accepts, the simplest first. %s is the fleet.
var nextSteps = []struct {
	method countersign.Method
	text   string
}{
	{countersign.MethodToken, "countersign enroll token --fleet %s"},
	{countersign.MethodClaim, "countersign enroll claim --fleet %s --devices 'PATTERN' --out DIR"},
	{countersign.MethodThumbprint, "countersign enroll thumbprint --fleet %s --device ID --cert FILE"},
	{countersign.MethodKey, "countersign enroll key --fleet %s --device ID"},
	{countersign.MethodGroup, "countersign enroll group --fleet %s"},
	{countersign.MethodTPM, "countersign enroll tpm --fleet %s --device ID --ek FILE"},
}

// enrollStep is how a device comes into a fleet that accepts the methods.
func enrollStep(fleet string, methods []string) string {
	for _, s := range nextSteps {
		if slices.Contains(methods, string(s.method)) {
			return fmt.Sprintf(s.text, fleet)
		}
	}
	return "countersign ca register --help" // a maker's certificate is all that it accepts
}
