package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/server"
)

// initCommand founds a server. file is the flag --config of the group.
func initCommand(env *Env, file *string) *cobra.Command {
	plan := ca.Plan{}
	c := &cobra.Command{
		Use: "init", Short: "Found a server: make its keys, its database and the first authorities, and stop",
		Long: `Make what a server begins with: the data folder, the database's tables, the keys of
a root and an issuing authority, their certificates, the sealing key, and a fleet
named default that accepts tokens. It is done once; on a database that has
authorities it changes nothing. Set root_passphrase first: it encrypts the root key.

The names and the ends of the authorities cannot be changed later: they are in every
certificate.`,
		Example: `  countersign server init --config /etc/countersign/countersign.yaml --name "Example Devices"
  countersign server init --organization "Example Inc." --country DE --root-key P-384 --root-validity 7300d`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(env, *file)
			if err != nil {
				return err
			}
			if err := plan.Check(); err != nil {
				return usagef("%v", err)
			}
			var given []string
			for _, name := range planFlags {
				if cmd.Flags().Changed(name) {
					given = append(given, "--"+name)
				}
			}
			return startError(env, initialize(cmd.Context(), env, cfg, founding{plan, given, *file}), cfg, *file)
		},
	}
	f := c.Flags()
	f.StringVar(&plan.Name, "name", "Countersign", "in front of Root and Issuing in the names of the authorities")
	f.StringVar(&plan.RootName, "root-name", "", "common name of the root (default name and Root)")
	f.StringVar(&plan.IssuingName, "issuing-name", "", "common name of the issuing authority (default name and Issuing)")
	f.StringVar(&plan.Organization, "organization", "", "organization (O) in both names")
	f.StringVar(&plan.Country, "country", "", "country (C) in both names, two letters")
	f.StringVar(&plan.RootKey, "root-key", keystore.KeyTypes[0], "type of the root's key: "+strings.Join(keystore.KeyTypes, ", "))
	f.StringVar(&plan.IssuingKey, "issuing-key", keystore.KeyTypes[0], "type of the issuing authority's key, of the same")
	durationFlag(f, &plan.RootValidity, "root-validity", ca.DefaultRootValidity, "how long the root is valid, 30d to 18250d")
	durationFlag(f, &plan.IssuingValidity, "issuing-validity", 0, "how long the issuing authority is valid, at most as long as the root (default 1095d)")
	complete(c, "root-key", keystore.KeyTypes...)
	complete(c, "issuing-key", keystore.KeyTypes...)
	return c
}

// planFlags are those that only a founding heeds.
var planFlags = []string{"name", "root-name", "issuing-name", "organization", "country", "root-key", "issuing-key", "root-validity", "issuing-validity"}

// founding is what the command line says of one.
type founding struct {
	plan  ca.Plan
	given []string // flags of the plan
	file  string   // of the configuration
}

func initialize(ctx context.Context, env *Env, cfg config.Config, f founding) error {
	if err := refuseBad(env, cfg); err != nil {
		return err
	}
	opts := options(env, cfg, false)
	opts.Founding = &f.plan
	authorities, made, err := server.Init(ctx, cfg, opts)
	if err != nil {
		return err
	}
	p := env.stderr()
	for _, c := range authorities {
		if c.KeyURI != "" {
			p.done("%s authority %s  %s", c.Kind, c.ID, fingerprint(c))
		}
	}
	if !made {
		p.linef("These authorities were there already; nothing was changed.")
		if len(f.given) > 0 {
			return countersign.Errorf(countersign.Conflict, "%s had no effect: the authorities cannot be changed", strings.Join(f.given, ", ")).
				WithNext("leave the flags out; for other authorities found another data folder and database")
		}
	}
	if cfg.RootPassphrase == "" {
		p.linef("%s the root key is not encrypted: set root_passphrase before production", p.yellow("Warning:"))
	}
	p.next("countersign server run%s", serverFlags(env, cfg, f.file))
	return nil
}
