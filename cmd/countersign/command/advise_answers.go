package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// question is one that the advisor asks. The last has no choices: its answer is a number.
type question struct {
	name, text string
	choices    []choice
}

type choice struct{ word, means string }

var questions = []question{
	{"hardware", "What holds the device's key?", []choice{
		{"tpm", "a TPM 2.0"}, {"secure-element", "a secure element or enclave that makes a key of its own"}, {"none", "nothing but its memory"},
	}},
	{"factory", "Does each device leave its factory with a certificate of its maker (IDevID)?", []choice{{"yes", ""}, {"no", ""}}},
	{"who", "Who touches a device before its first connection?", []choice{
		{"factory", "your factory line, which can write into it"},
		{"installer", "someone of yours at the site"},
		{"owner", "the customer, with an app"},
		{"nobody", "all devices get the same image and no more"},
	}},
	{"network", "How does a device reach this server?", []choice{
		{"direct", "TLS arrives here as it left the device"}, {"proxy", "something between ends TLS"}, {"offline", "not at all when it gets its identity"},
	}},
	{"count", "How many devices?", nil},
}

// answers are what the decision rests on.
type answers struct {
	Hardware string `json:"hardware"`
	Factory  string `json:"factory"`
	Who      string `json:"who"`
	Network  string `json:"network"`
	Count    int    `json:"count"`
}

func (n answers) many() bool { return n.Count > manyDevices }

// set takes one answer: a usage error names the choices.
func (n *answers) set(name, value string) error {
	i := slices.IndexFunc(questions, func(q question) bool { return q.name == name })
	if i < 0 {
		var names []string
		for _, q := range questions {
			names = append(names, q.name)
		}
		return usagef("there is no question %q; they are %s", name, strings.Join(names, ", "))
	}
	q := questions[i]
	if q.choices == nil {
		count, err := strconv.Atoi(value)
		if err != nil || count < 1 || count > maxAdvised {
			return usagef("%s %q is not a number of devices, 1 to %d", name, value, maxAdvised)
		}
		n.Count = count
		return nil
	}
	var words []string
	for _, c := range q.choices {
		words = append(words, c.word)
	}
	if err := oneOf(name, value, words...); err != nil {
		return err
	}
	*map[string]*string{"hardware": &n.Hardware, "factory": &n.Factory, "who": &n.Who, "network": &n.Network}[name] = value
	return nil
}

// parseAnswers reads hardware=tpm,factory=no,...; all questions must be answered.
func parseAnswers(text string) (n answers, err error) {
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return n, usagef("%q is not an answer such as hardware=tpm", part)
		}
		if seen[name] {
			return n, usagef("%s is answered twice", name)
		}
		seen[name] = true
		if err := n.set(name, value); err != nil {
			return n, err
		}
	}
	for _, q := range questions {
		if !seen[q.name] {
			return n, usagef("%s is not answered: %s", q.name, q.hint())
		}
	}
	return n, nil
}

// hint says what may be answered.
func (q question) hint() string {
	if q.choices == nil {
		return "a number"
	}
	var words []string
	for _, c := range q.choices {
		words = append(words, c.word)
	}
	return strings.Join(words, ", ")
}

// ask asks all questions, each until its answer is one of the choices.
func (n *answers) ask(in io.Reader, p printer) error {
	lines := bufio.NewReader(in)
	for _, q := range questions {
		p.linef("%s", q.text)
		for _, c := range q.choices {
			if c.means == "" {
				p.linef("  %s", c.word)
				continue
			}
			p.linef("  %-15s %s", c.word, c.means)
		}
		for {
			_, _ = fmt.Fprintf(p.w, "%s> ", q.name)
			line, err := lines.ReadString('\n')
			if len(line) > maxAnswer {
				return usagef("the answer to %s is too long", q.name)
			}
			if err != nil && (line == "" || !errors.Is(err, io.EOF)) {
				return usagef("%s is not answered: %s", q.name, q.hint())
			}
			wrong := n.set(q.name, strings.TrimSpace(line))
			if wrong == nil {
				break
			}
			p.linef("%s", printable(wrong.Error()))
		}
	}
	return nil
}

const (
	// manyDevices is the number above which naming each device by hand is too much work.
	manyDevices = 100
	// maxAdvised is more devices than there are people.
	maxAdvised = 10_000_000_000
	// maxAnswer is longer than any answer to a question.
	maxAnswer = 100
)
