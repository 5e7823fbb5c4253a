package command

import "github.com/countersign-iot/countersign"

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
