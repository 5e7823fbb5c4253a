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
		"a device without a network cannot show evidence; a person with a network carries its request in and its certificate back",
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
		countersign.MethodToken, "the endorsement keys have no certificates and they cannot be read out beforehand",
	},
	{
		func(n answers) bool { return n.Who == "factory" && n.Network == "direct" }, countersign.MethodFactory, "",
		"the line touches every device anyway: it can bring in the requests and leave certificates, and no secret stays behind",
		countersign.MethodGroup, "the line has no network, or must not wait for an answer",
	},
	{
		func(n answers) bool { return n.Who == "factory" && n.many() }, countersign.MethodGroup, "",
		"each device gets a key of its own, computed on the line without a request, and its token passes proxies",
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
		"who touches the device can enter or scan a token that is good once, for this device only",
		countersign.MethodClaim, "a token for each device is too much handling: then one bounded certificate for each installer",
	},
	{
		func(answers) bool { return true }, countersign.MethodToken, "",
		"who touches the device can enter a token that is good once, for this device only",
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
	add(n.Network == "offline" && n.Hardware == "tpm", "make the key in the TPM; it is not checked that it was, since the proof needs the chip online")
	add(n.Hardware == "none" && n.Network != "offline", "a key in memory can be copied: watch finding.fork, which tells two holders of one identity apart")
	add(n.Hardware == "secure-element" && r.method != countersign.MethodThumbprint, "make the key in the element and sign the request there, so that it never was in memory")
	add(n.Who == "nobody" && (r.method == countersign.MethodClaim || r.method == countersign.MethodToken), "have an operator approve each enrollment while you can: approval in the fleet's rules")
	add(n.Who == "owner" && r.method == countersign.MethodIDevID, "the certificate says which device it is, not whose: bind the owner in your backend, or by the webhook")
	add(true, "say how expired devices come back before the first one does: recovery in the fleet's rules")
	return out
}

// recipe names the commands for a method in one of its variants.
type recipe struct {
	method  countersign.Method
	variant string
}

// What a device types that has openssl and curl and no software of ours. The fleet
// is pumps and the device pump-7.
const (
	setServer = "export SERVER=https://127.0.0.1:8443 ROOTS=.countersign/roots.pem"
	makeKey   = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout pump-7.key -subj /CN=pump-7 -out pump-7.csr"
	ask       = "curl --fail-with-body --cacert $ROOTS --data-binary @pump-7.csr --output pump-7.pem "
	enrollURL = ` "$SERVER/api/v1/enroll?fleet=pumps"`
	askToken  = ask + `--user "x:$TOKEN"` + enrollURL
	askClaim  = ask + "--cert claim/claim.pem --key claim/claim.key" + enrollURL
	askIDevID = ask + "--cert idevid.pem --key idevid.key" + enrollURL
	askSelf   = ask + "--cert self.pem --key self.key" + enrollURL
	askSAS    = ask + `--header "Authorization: SharedAccessSignature sr=$SR&sig=$SIG&se=$SE"` + enrollURL
	setSR     = "export SR=pumps/registrations/pump-7 SE=$(($(date +%s) + 3600))"
	setHex    = "export HEX=$(printf %s \"$KEY\" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \\n')"
	setSIG    = `export SIG=$(printf '%s\n%s' $SR $SE | openssl dgst -sha256 -mac HMAC -macopt hexkey:$HEX -binary | openssl base64 -A | sed 's/+/%2B/g;s/\//%2F/g;s/=/%3D/g')`
)

// recipes are the commands of each method that the advisor names.
var recipes = map[recipe][]command{
	{countersign.MethodToken, ""}: lines(
		operator("countersign fleet set pumps --method token", "countersign enroll token --device pump-7 --fleet pumps --ttl 24h -o name"),
		onDevice(setServer, "export TOKEN=cset_...", makeKey, askToken),
	),
	{countersign.MethodToken, "bulk"}: lines(
		operator("countersign fleet set pumps --method token", "countersign enroll token --from devices.csv --fleet pumps --ttl 720h > tokens.csv"),
		onDevice(setServer, "export TOKEN=cset_...", makeKey, askToken),
	),
	{countersign.MethodToken, "shared"}: lines(
		operator(
			"countersign fleet set pumps --method token",
			"countersign fleet rule set pumps approval token",
			"countersign enroll token --fleet pumps --uses 500 --ttl 720h --devices 'pump-*' --per-minute 10 -o name",
		),
		onDevice(setServer, "export TOKEN=cset_...", makeKey, askToken),
		operator("countersign enroll pending", "countersign enroll approve ID"),
		onDevice(askToken),
	),
	{countersign.MethodFactory, ""}: lines(
		operator("countersign fleet set pumps --method token", "countersign operator token line-3 --role factory --ttl 2160h -o name > line-3.token"),
		onLine(
			"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout pump-7.key -subj /CN=pump-7 -outform DER -out pump-7.der",
			`printf '{"item":"run1-pump-7","csr":"%s"}\n' "$(openssl base64 -A -in pump-7.der)" >> requests.jsonl`,
			`curl --fail-with-body --header "Authorization: Bearer $(cat line-3.token)" --header 'Content-Type: application/jsonl' `+
				"--data-binary @requests.jsonl --output certificates.jsonl http://127.0.0.1:8080/api/v1/factory/pumps/certificates",
		),
	),
	{countersign.MethodClaim, ""}: lines(
		operator(
			"countersign fleet set pumps --method claim --method token",
			"countersign fleet rule set pumps approval claim",
			"countersign enroll claim --label batch-3 --fleet pumps --uses 500 --ttl 720h --devices 'pump-*' --per-minute 10 --out claim",
		),
		onDevice(setServer, makeKey, askClaim),
		operator("countersign enroll pending", "countersign enroll approve ID"),
		onDevice(askClaim),
	),
	{countersign.MethodClaim, "temporary"}: lines(
		operator("countersign fleet set pumps --method claim --method token", "countersign enroll claim --temporary --fleet pumps --devices pump-7 --out claim"),
		onDevice(setServer, makeKey, askClaim),
	),
	{countersign.MethodIDevID, ""}: lines(
		operator(
			"export CODE=$(countersign ca register-code -o name)",
			"openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout proof.key -subj /CN=$CODE -out proof.csr",
			"openssl x509 -req -in proof.csr -CA maker.pem -CAkey maker.key -CAcreateserial -days 1 -out proof.pem",
			"countersign ca register acme --cert maker.pem --verification proof.pem",
			"countersign fleet set pumps --method idevid --method token",
			"countersign fleet rule set pumps authorities acme",
			"countersign fleet rule set pumps id.field serial_number",
		),
		onDevice(setServer, makeKey, askIDevID),
	),
	{countersign.MethodThumbprint, ""}: lines(
		onDevice("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout self.key -subj /CN=pump-7 -days 3650 -out self.pem"),
		operator("countersign fleet set pumps --method thumbprint --method token", "countersign enroll thumbprint --device pump-7 --fleet pumps --cert self.pem"),
		onDevice(setServer, makeKey, askSelf),
	),
	{countersign.MethodKey, ""}: lines(
		operator("countersign fleet set pumps --method key --method token", "countersign enroll key --device pump-7 --fleet pumps -o name > pump-7.symmetric"),
		onDevice(setServer, "export KEY=$(cat pump-7.symmetric)", setSR, setHex, setSIG, makeKey, askSAS),
	),
	{countersign.MethodGroup, ""}: lines(
		operator("countersign fleet set pumps --method group --method token", "countersign enroll group --label line-3 --fleet pumps -o name > group.key"),
		onLine("countersign enroll derive --key group.key pump-7 -o name > pump-7.symmetric"),
		onDevice(setServer, "export KEY=$(cat pump-7.symmetric)", setSR, setHex, setSIG, makeKey, askSAS),
	),
	{countersign.MethodTPM, ""}: lines(
		onDevice(
			"tpm2_createek -Q -G rsa -c ek.ctx -u ek.pub",
			"tpm2_createak -Q -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx -u ak.pub",
			"tpm2_flushcontext -t",
		),
		operator("countersign fleet set pumps --method tpm --method token", "countersign enroll tpm --device pump-7 --fleet pumps --ek ek.pub"),
		onDevice(
			setServer,
			`printf '{"fleet":"pumps","ek_public":"%s","ak_public":"%s"}' $(openssl base64 -A -in ek.pub) $(openssl base64 -A -in ak.pub) > identity.json`,
			`curl --fail-with-body --cacert $ROOTS --json @identity.json --output challenge.json "$SERVER/api/v1/enroll/tpm"`,
			"echo 'now answer the challenge as docs/enrollment.md#tpm shows'",
		),
	),
}

func lines(parts ...[]command) (out []command) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func operator(texts ...string) []command { return at("operator", texts) }
func onLine(texts ...string) []command   { return at("line", texts) }
func onDevice(texts ...string) []command { return at("device", texts) }

func at(where string, texts []string) []command {
	out := make([]command, 0, len(texts))
	for _, t := range texts {
		out = append(out, command{where, t})
	}
	return out
}

// advice is what the advisor says.
type advice struct {
	Method   countersign.Method `json:"method"`
	Variant  string             `json:"variant,omitempty"`
	Why      string             `json:"why"`
	GivesUp  string             `json:"gives_up"`
	RunnerUp countersign.Method `json:"runner_up"`
	RunnerIf string             `json:"runner_up_when"`
	Notes    []string           `json:"notes,omitempty"`
	Commands []command          `json:"commands"`
	Docs     string             `json:"docs"`
}

// command is one line to paste.
type command struct {
	Where string `json:"where"` // operator, line or device
	Text  string `json:"text"`
}
