package command

import "github.com/countersign-iot/countersign"

// rule is one row of the decision table. The first whose condition holds decides.
type rule struct {
	when     func(answers) bool
	method   countersign.Method
	variant  string // key of recipes beside the method; empty: the plain one
	why      string
	runner   countersign.Method
	runnerIf string
}

// decisions is the decision table. Its last row takes whatever is left.
var decisions = []rule{
	{
		func(n answers) bool { return n.Network == "offline" }, countersign.MethodFactory, "",
		"a device without a network cannot show evidence; somebody with a network carries its request in and its certificate back",
		countersign.MethodToken, "the devices come online once where you can watch them",
	},
	{
		func(n answers) bool { return n.Network == "direct" && n.Factory == "yes" }, countersign.MethodIDevID, "",
		"each device has an identity that its maker vouches for already, and nothing secret needs to be handed out",
		countersign.MethodThumbprint, "you trust these devices but not all that their maker's CA will ever sign",
	},
	{
		func(n answers) bool { return n.Hardware == "tpm" }, countersign.MethodTPM, "",
		"the chip proves which chip it is and that the key cannot leave it, and the proof passes proxies",
		countersign.MethodToken, "the endorsement keys have no certificates and nobody can read them out beforehand",
	},
	{
		func(n answers) bool { return n.Who == "factory" && n.Network == "direct" }, countersign.MethodFactory, "",
		"the line touches every device anyway: it can bring in the requests and leave certificates, and no secret stays behind",
		countersign.MethodGroup, "the line has no network, or must not wait for an answer",
	},
	{
		func(n answers) bool { return n.Who == "factory" && n.many() }, countersign.MethodGroup, "",
		"each device gets a key of its own, computed on the line without asking anybody, and its token passes proxies",
		countersign.MethodFactory, "the line has a network of its own to this server",
	},
	{
		func(n answers) bool { return n.Who == "factory" }, countersign.MethodKey, "",
		"each device gets a key of its own, and its token passes proxies",
		countersign.MethodToken, "the device comes online within days: then nothing lasting is needed",
	},
	{
		func(n answers) bool {
			return n.Hardware == "secure-element" && n.Network == "direct" && n.Who != "owner" && (n.Who == "nobody" || !n.many())
		}, countersign.MethodThumbprint, "",
		"the element has a key and can sign a certificate with it: registering its fingerprint hands out no secret",
		countersign.MethodIDevID, "the maker of the elements signs their certificates with a CA and can give you its certificate",
	},
	{
		func(n answers) bool { return n.Who == "owner" && n.Network == "direct" }, countersign.MethodClaim, "temporary",
		"the app asks your backend, which asks for a claim that is good once, for one device, for five minutes",
		countersign.MethodToken, "the app can pass a line of text but no certificate and key",
	},
	{
		func(n answers) bool { return n.Who == "nobody" && n.Network == "direct" }, countersign.MethodClaim, "",
		"an image that is the same everywhere can hold one shared certificate only, so it must be bounded as tightly as it goes",
		countersign.MethodIDevID, "you can choose hardware that comes with a certificate: then nothing is shared",
	},
	{
		func(n answers) bool { return n.Who == "nobody" }, countersign.MethodToken, "shared",
		"an image that is the same everywhere can hold one shared secret only, and behind a proxy no certificate arrives here",
		countersign.MethodClaim, "the proxy can pass TLS through",
	},
	{
		func(n answers) bool { return n.many() }, countersign.MethodToken, "bulk",
		"whoever touches the device can enter or scan a token that is good once, for this device only",
		countersign.MethodClaim, "a token for each device is too much handling: then one bounded certificate for each installer",
	},
	{
		func(answers) bool { return true }, countersign.MethodToken, "",
		"whoever touches the device can enter a token that is good once, for this device only",
		countersign.MethodClaim, "a token for each device is too much handling: then one bounded certificate for each installer",
	},
}

// advise decides.
func advise(n answers) advice {
	for _, r := range decisions {
		if !r.when(n) {
			continue
		}
		m := methodOf(r.method)
		return advice{
			Method: r.method, Variant: r.variant, Why: r.why, GivesUp: m.givesUp, RunnerUp: r.runner, RunnerIf: r.runnerIf,
			Notes: notes(n, r), Commands: recipes[recipe{r.method, r.variant}], Docs: "docs/enrollment.md#" + string(r.method),
		}
	}
	panic("the last decision takes whatever is left")
}

// notes are what the answers say beside the method.
func notes(n answers, r rule) (out []string) {
	add := func(when bool, text string) {
		if when {
			out = append(out, text)
		}
	}
	add(n.Network == "proxy" && n.Factory == "yes", "the factory certificate is of no use through a proxy that ends TLS; if it can pass TLS through, take idevid")
	add(n.Network == "proxy", "this server sees the proxy's address: bounds by network, and blocks of addresses that guess, mean the proxy; allow-list it")
	add(n.Network == "offline" && n.Hardware == "tpm", "make the key in the TPM; nobody checks that it was, since the proof needs the chip online")
	add(n.Hardware == "none" && n.Network != "offline", "a key in memory can be copied: watch finding.fork, which tells two holders of one identity apart")
	add(n.Hardware == "secure-element" && r.method != countersign.MethodThumbprint, "make the key in the element and sign the request there, so that it never was in memory")
	add(n.Who == "nobody" && (r.method == countersign.MethodClaim || r.method == countersign.MethodToken), "have an operator approve each enrollment while you can: approval in the fleet's rules")
	add(n.Who == "owner" && r.method == countersign.MethodIDevID, "the certificate says which device it is, not whose: bind the owner in your backend, or by the webhook")
	add(true, "say how expired devices come back before the first one does: recovery in the fleet's rules")
	return out
}
