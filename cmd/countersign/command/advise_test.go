package command

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/google/go-cmp/cmp"
)

// everyAnswer gives all combinations, with numbers on both sides of many.
func everyAnswer() (all []answers) {
	for _, hardware := range questions[0].choices {
		for _, factory := range questions[1].choices {
			for _, who := range questions[2].choices {
				for _, network := range questions[3].choices {
					for _, count := range []int{1, manyDevices, manyDevices + 1, maxAdvised} {
						all = append(all, answers{hardware.word, factory.word, who.word, network.word, count})
					}
				}
			}
		}
	}
	return all
}

func TestEveryAnswerGetsOneWayIn(t *testing.T) {
	taken := map[recipe]bool{}
	for _, n := range everyAnswer() {
		d := advise(n)
		taken[recipe{d.Method, d.Variant}] = true
		if d.Why == "" || d.GivesUp == "" || d.RunnerIf == "" || len(d.Commands) == 0 || d.Docs == "" {
			t.Errorf("%+v: got advice with a gap: %+v", n, d)
		}
		if d.RunnerUp == d.Method || methodOf(d.RunnerUp).name != d.RunnerUp {
			t.Errorf("%+v: got runner-up %s to %s", n, d.RunnerUp, d.Method)
		}
		if peer := []countersign.Method{countersign.MethodClaim, countersign.MethodIDevID, countersign.MethodThumbprint}; n.Network != "direct" && slices.Contains(peer, d.Method) {
			t.Errorf("%+v: got %s, whose evidence is in TLS and does not arrive", n, d.Method)
		}
		if d.Method == countersign.MethodTPM && n.Hardware != "tpm" || d.Method == countersign.MethodIDevID && n.Factory != "yes" {
			t.Errorf("%+v: got %s, which the device does not have", n, d.Method)
		}
	}
	for r := range recipes {
		if !taken[r] {
			t.Errorf("no answer leads to %v", r)
		}
		delete(taken, r)
	}
	if len(taken) > 0 {
		t.Errorf("there are no commands for %v", taken)
	}
}

func TestEveryDecisionDecides(t *testing.T) {
	used := make([]bool, len(decisions))
	for _, n := range everyAnswer() {
		used[slices.IndexFunc(decisions, func(r rule) bool { return r.when(n) })] = true
	}
	if i := slices.Index(used, false); i >= 0 {
		t.Errorf("row %d of the decision table never decides: %s", i, decisions[i].why)
	}
}

// TestAdviceCoversMethods wants each way to a first certificate recommended to
// somebody, and each method in the matrix.
func TestAdviceCoversMethods(t *testing.T) {
	all := []countersign.Method{
		countersign.MethodToken, countersign.MethodFactory, countersign.MethodClaim, countersign.MethodIDevID, countersign.MethodThumbprint,
		countersign.MethodKey, countersign.MethodGroup, countersign.MethodTPM, countersign.MethodCertificate, countersign.MethodRecovery,
	}
	var rows []countersign.Method
	for _, m := range methods {
		rows = append(rows, m.name)
	}
	if d := cmp.Diff(all, rows); d != "" {
		t.Errorf("methods (-want +got):\n%s", d)
	}
	advised := map[countersign.Method]bool{}
	for _, n := range everyAnswer() {
		advised[advise(n).Method] = true
	}
	for _, m := range all[:8] {
		if !advised[m] {
			t.Errorf("nobody is advised to take %s", m)
		}
	}
}

// ours finds the commands of this program in a line of shell, quoted the words
// that would be split.
var (
	ours   = regexp.MustCompile(`(?:^|\$\(|\| )countersign ([^|>)&;]*)`)
	quoted = regexp.MustCompile(`'[^']*'`)
)

func checkCommand(t *testing.T, line string) {
	t.Helper()
	for _, m := range ours.FindAllStringSubmatch(quoted.ReplaceAllString(line, "quoted"), -1) {
		root := rootCommand(&Env{Getenv: func(string) string { return "" }})
		cmd, args, err := root.Find(strings.Fields(m[1]))
		if err != nil || cmd.HasSubCommands() {
			t.Errorf("%s: there is no such command: %v", line, err)
			continue
		}
		if err := cmd.ParseFlags(args); err != nil {
			t.Errorf("%s: %v", line, err)
		} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestAdvisedCommandsParse(t *testing.T) {
	for _, commands := range recipes {
		for _, c := range commands {
			if places[c.Where] == "" {
				t.Errorf("%s: there is no place %q", c.Text, c.Where)
			}
			checkCommand(t, c.Text)
		}
	}
}

const enrollmentDoc = "../../../docs/enrollment.md"

func readDoc(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(enrollmentDoc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDocumentedCommandsParse holds every command of docs/enrollment.md against
// the program, as far as it can be read without running it.
func TestDocumentedCommandsParse(t *testing.T) {
	n := 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(readDoc(t), -1) {
		for line := range strings.Lines(strings.ReplaceAll(block[1], "\\\n", " ")) {
			checkCommand(t, strings.TrimSpace(line))
			n++
		}
	}
	if n == 0 {
		t.Error("there are no commands in it")
	}
}

// TestDocumentedMatrixIsThatOfTheAdvisor wants a row in the matrix for each method, in the
// advisor's order and without an empty cell, and a section for each.
func TestDocumentedMatrixIsThatOfTheAdvisor(t *testing.T) {
	doc := readDoc(t)
	_, matrix, _ := strings.Cut(doc, "| method | trusts that | who holds what secret | if it leaks | the way back | effort on the line |\n|---|---|---|---|---|---|\n")
	matrix, _, _ = strings.Cut(matrix, "\n\n")
	rows := strings.Split(matrix, "\n")
	if len(rows) != len(methods) {
		t.Fatalf("the matrix of %s has %d rows, want %d", enrollmentDoc, len(rows), len(methods))
	}
	cell := regexp.MustCompile(`[^| ][^|]* \|`)
	for i, m := range methods {
		if !strings.HasPrefix(rows[i], fmt.Sprintf("| [%[1]s](#%[1]s) | ", m.name)) || len(cell.FindAllString(rows[i], -1)) != 6 {
			t.Errorf("%s: row %d is not a full one of %s: %s", enrollmentDoc, i+1, m.name, rows[i])
		}
		if !strings.Contains(doc, "\n### "+string(m.name)+"\n") {
			t.Errorf("%s has no section %s", enrollmentDoc, m.name)
		}
	}
}

// TestDocumentedRulesAreAll reads the reference of rules as fleet set does, and
// wants every rule in it.
func TestDocumentedRulesAreAll(t *testing.T) {
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(readDoc(t))
	if block == nil {
		t.Fatal("there are no rules in it")
	}
	rules, err := rulesFrom(&Env{In: strings.NewReader(block[1])}, "-")
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(*rules)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the reference lacks %s", v.Type().Field(i).Name)
		}
	}
}

func TestAnswersAreComplete(t *testing.T) {
	for text, want := range map[string]string{
		"": "is not an answer such as",
		"hardware=tpm,factory=no,who=owner,network=direct":                           "count is not answered: a number",
		"hardware=hsm,factory=no,who=owner,network=direct,count=1":                   `hardware "hsm" is not one of tpm, secure-element, none`,
		"hardware=tpm,factory=no,who=robot,network=direct,count=1":                   "factory, installer, owner, nobody",
		"hardware=tpm,factory=no,who=owner,network=radio,count=1":                    "direct, proxy, offline",
		"hardware=tpm,factory=no,who=owner,network=direct,count=0":                   `count "0" is not a number of devices`,
		"hardware=tpm,factory=no,who=owner,network=direct,count=many":                `count "many" is not a number of devices`,
		"hardware=tpm,hardware=tpm,factory=no,who=owner,network=direct,count=1":      "hardware is answered twice",
		"color=red,hardware=tpm,factory=no,who=owner,network=direct,count=1":         "they are hardware, factory, who, network, count",
		"hardware=tpm,factory=no,who=owner,network=direct,count=1 and a few, or two": "is not a number",
	} {
		_, err := parseAnswers(text)
		if exitCode(err) != exitUsage || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: got %v, want a usage error with %q", text, err, want)
		}
	}
	got, err := parseAnswers("count=12, network=proxy,who=installer,factory=yes,hardware=none")
	if want := (answers{"none", "yes", "installer", "proxy", 12}); err != nil || got != want {
		t.Errorf("got %+v %v, want %+v", got, err, want)
	}
}

func TestAdvisorAsksUntilItUnderstands(t *testing.T) {
	var said bytes.Buffer
	var n answers
	err := n.ask(strings.NewReader("a chip\ntpm\nno\nowner\ndirect\n-3\n1000"), printer{w: &said})
	if want := (answers{"tpm", "no", "owner", "direct", 1000}); err != nil || n != want {
		t.Errorf("got %+v %v, want %+v", n, err, want)
	}
	for _, want := range []string{"What holds the device's key?", `hardware "a chip" is not one of tpm, secure-element, none`, "the customer, with an app"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it did not say %q:\n%s", want, said.String())
		}
	}
	if err := new(answers).ask(strings.NewReader("tpm\n"), printer{w: &said}); exitCode(err) != exitUsage {
		t.Errorf("half of the answers: got %v, want a usage error", err)
	}
}

func TestAdviceIsPrinted(t *testing.T) {
	for format, want := range map[string][]string{
		formatTable: {"Take:        tpm", "You give up: ", "Otherwise:   token, if ", "# on the device\ntpm2_createek"},
		formatJSON:  {`"method": "tpm"`, `"runner_up": "token"`, `"where": "operator"`},
		formatName:  {"tpm\n"},
	} {
		var out, errOut bytes.Buffer
		env := &Env{In: strings.NewReader(""), Out: &out, Err: &errOut, Getenv: func(string) string { return "" }}
		args := []string{"enroll", "advise", "--answers", "hardware=tpm,factory=no,who=owner,network=direct,count=1000", "-o", format}
		if code := env.Run(args); code != exitOK {
			t.Fatalf("%s: exit code %d: %s", format, code, errOut.String())
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: got %s\nwant %q in it", format, out.String(), w)
			}
		}
	}
	var errOut bytes.Buffer
	env := &Env{In: strings.NewReader(""), Out: &errOut, Err: &errOut, Getenv: func(string) string { return "" }}
	if code := env.Run([]string{"enroll", "advise"}); code != exitUsage {
		t.Errorf("with nobody to ask: got exit code %d, want %d", code, exitUsage)
	}
}
