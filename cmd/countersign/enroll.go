package main

import (
	"fmt"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/spf13/cobra"
)

func (a *app) enrollCommand() *cobra.Command {
	return group("enroll", "Let devices in", nil, a.enrollToken(), a.enrollTokens())
}

func (a *app) enrollToken() *cobra.Command {
	var t api.NewToken
	var ttl time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Make an enrollment token; it is shown this once",
		Example: `  countersign enroll token --fleet default --uses 1 --ttl 1h -o name > token.txt
  countersign enroll token --device pump-7`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usagef("--ttl %s is less than a second", ttl)
			}
			if t.Uses < 1 {
				return usagef("--uses %d is less than 1", t.Uses)
			}
			t.TTLSeconds = int64(ttl / time.Second)
			made, err := a.admin().CreateToken(cmd.Context(), t)
			if err != nil {
				return err
			}
			p := a.stderr()
			who := "any device of fleet " + made.Fleet
			if made.Device != "" {
				who = "device " + made.Device + " of fleet " + made.Fleet
			}
			if a.output == formatTable {
				p.done("token for %s, good %s, for %s; it is not shown again", who, times(made.Uses), span(ttl))
				p.next("give it to the device, as the password of EST simpleenroll with any user name")
				p = a.stdout()
				p.linef("%s", made.Secret)
				return nil
			}
			return show(a, *made, view[api.IssuedToken]{name: func(t api.IssuedToken) string { return t.Secret }})
		},
	}
	c.Flags().StringVar(&t.Fleet, "fleet", "", "fleet that it lets in to (default the device's, else \"default\")")
	c.Flags().StringVar(&t.Device, "device", "", "the one id that it may enroll")
	c.Flags().IntVar(&t.Uses, "uses", 1, "how many devices it may enroll")
	c.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it is good")
	completeWith(c, "fleet", a.fleetNames)
	completeWith(c, "device", a.deviceIDs)
	return c
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func (a *app) enrollTokens() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "tokens", Short: "List enrollment tokens, without their secrets", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return list(a, a.paged(limit).Tokens(cmd.Context()), limit, view[api.Credential]{
				name: func(t api.Credential) string { return t.ID },
				cols: []col[api.Credential]{
					{"TOKEN", func(t api.Credential) string { return t.ID }},
					{"FLEET", func(t api.Credential) string { return t.Fleet }},
					{"DEVICE", func(t api.Credential) string { return t.Device }},
					{"USED", func(t api.Credential) string { return ratio(t.Used, t.Uses) }},
					{"EXPIRES", func(t api.Credential) string { return a.until(t.ExpiresAt) }},
					{"BY", func(t api.Credential) string { return t.CreatedBy }},
				},
			})
		},
	}
	limitFlag(c, &limit)
	return c
}
