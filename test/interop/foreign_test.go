package interop

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// pahoC is the header of Debian's libpaho-mqtt-dev.
	pahoC = "/usr/include/MQTTClient.h"
	// longTopic is a length that other brokers refuse, and MQTT allows.
	longTopic = 10_000
)

// foreign is a client of others with a kept session. receive subscribes to the topic and
// leaves if count is 0; else it returns the payloads of count messages.
type foreign struct {
	name, device string
	topic        string
	receive      func(t *testing.T, k *talk, f foreign, count int) []string
}

func foreigners() []foreign {
	return []foreign{
		{"mosquitto_sub, MQTT 3.1", "sub-31", "talk/3.1", mosquittoReceives("31")},
		{"mosquitto_sub, MQTT 3.1.1", "sub-311", "talk/with blanks/and * and >", mosquittoReceives("311")},
		{"mosquitto_sub, MQTT 5", "sub-5", "talk/" + strings.Repeat("x", longTopic-len("talk/")), mosquittoReceives("5")},
		{"Paho for Go", "paho-go", "talk/" + strings.Repeat("ü ", longTopic/3), pahoGoReceives},
		{"Paho for C", "paho-c", "talk/c", pahoCReceives},
		{"MQTT.js on Node, MQTT 3.1.1", "node-311", "talk/node 311", nodeReceives("4")},
		{"MQTT.js on Node, MQTT 5", "node-5", "talk/node 5", nodeReceives("5")},
	}
}

// TestForeignClientsReceiveOverARestart has clients of others subscribe with QoS 2 and
// leave. What mosquitto_pub publishes before and after the end of the server arrives once
// and in order when they return.
func TestForeignClientsReceiveOverARestart(t *testing.T) {
	for _, powerCut := range []bool{false, true} {
		t.Run(map[bool]string{false: "SIGTERM", true: "SIGKILL"}[powerCut], func(t *testing.T) {
			t.Parallel()
			kit.Programs(t, "mosquitto_pub")
			devices := []string{"publisher"}
			for _, f := range foreigners() {
				devices = append(devices, f.device)
			}
			k := newTalk(t, "", devices...)
			left := map[string]bool{}
			for _, f := range foreigners() {
				t.Run(f.name+" leaves", func(t *testing.T) {
					f.receive(t, k, f, 0)
					left[f.name] = !t.Failed()
				})
				k.say(t, f.topic, 1, 5)
			}
			k.restart(powerCut)
			for _, f := range foreigners() {
				k.say(t, f.topic, 6, 10)
				t.Run(f.name+" returns", func(t *testing.T) {
					if !left[f.name] {
						t.Fatal("it did not leave a session: see above")
					}
					got := strings.Join(f.receive(t, k, f, 10), " ")
					if want := "1 2 3 4 5 6 7 8 9 10"; got != want {
						t.Errorf("got %q, want %q", got, want)
					}
				})
			}
		})
	}
}

// say publishes numbers with QoS 2, as one mosquitto_pub.
func (k *talk) say(t *testing.T, topic string, from, to int) {
	t.Helper()
	var lines strings.Builder
	for n := from; n <= to; n++ {
		fmt.Fprintln(&lines, n)
	}
	cmd := exec.CommandContext(t.Context(), "mosquitto_pub", append(k.mosquitto("publisher", "5"), "-t", topic, "-q", "2", "-l")...)
	cmd.Stdin = strings.NewReader(lines.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
}

// run runs a client to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", filepath.Base(name), err, out, said.String())
	}
	return strings.Fields(string(out))
}

func mosquittoReceives(level string) func(*testing.T, *talk, foreign, int) []string {
	return func(t *testing.T, k *talk, f foreign, count int) []string {
		t.Helper()
		kit.Programs(t, "mosquitto_sub")
		args := append(k.mosquitto(f.device, level), "-t", f.topic, "-q", "2", "-c")
		if level == "5" {
			args = append(args, "-x", "3600")
		}
		if count == 0 {
			return run(t, "mosquitto_sub", append(args, "-E")...)
		}
		return run(t, "mosquitto_sub", append(args, "-C", fmt.Sprint(count), "-W", fmt.Sprint(int(patience/time.Second)))...)
	}
}

func pahoGoReceives(t *testing.T, k *talk, f foreign, count int) (list []string) {
	t.Helper()
	done := func(token paho.Token) {
		t.Helper()
		if !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatalf("no answer: %v", token.Error())
		}
	}
	got := make(chan string, 100)
	c := paho.NewClient(paho.NewClientOptions().AddBroker("ssl://" + k.addr).SetClientID(f.device).SetCleanSession(false).
		SetTLSConfig(k.ids[f.device].TLSConfig()).SetAutoReconnect(false).SetConnectTimeout(patience).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { got <- string(m.Payload()) }))
	done(c.Connect())
	defer c.Disconnect(250)
	if count == 0 {
		done(c.Subscribe(f.topic, 2, nil))
	}
	for range count {
		select {
		case text := <-got:
			list = append(list, text)
		case <-time.After(patience):
			return list
		}
	}
	return list
}

func pahoCReceives(t *testing.T, k *talk, f foreign, count int) []string {
	t.Helper()
	kit.Programs(t, "gcc")
	if _, err := os.Stat(pahoC); err != nil {
		kit.Missing(t, "%s is not installed", "libpaho-mqtt-dev")
	}
	bin := filepath.Join(t.TempDir(), "kept")
	run(t, "gcc", "-Wall", "-Werror", "-o", bin, filepath.Join("testdata", "paho_c", "kept.c"), "-lpaho-mqtt3cs")
	files := k.files[f.device]
	return run(t, bin, "ssl://"+k.addr, k.ends.Roots, files.Cert, files.Key, f.device, f.topic, fmt.Sprint(count))
}

// mqttJS is the folder of mqtt.js, which npm ci installs for the example.
func mqttJS(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(moduleRoot, "examples", "browser", "node_modules", "mqtt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		kit.Missing(t, "%s is not installed", "mqtt.js (npm ci --prefix examples/browser)")
	}
	return dir
}

func nodeReceives(level string) func(*testing.T, *talk, foreign, int) []string {
	return func(t *testing.T, k *talk, f foreign, count int) []string {
		t.Helper()
		kit.Programs(t, "node")
		host, port, err := net.SplitHostPort(k.addr)
		if err != nil {
			t.Fatal(err)
		}
		files := k.files[f.device]
		return run(t, "node", filepath.Join("testdata", "mqttjs", "kept.js"), mqttJS(t), level, host, port,
			k.ends.Roots, files.Cert, files.Key, f.device, f.topic, fmt.Sprint(count))
	}
}
