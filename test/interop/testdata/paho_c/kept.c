/* A device on the Paho client in C, with a kept session of MQTT 3.1.1.
 *
 *	kept URI ROOTS CERTIFICATE KEY CLIENT TOPIC COUNT
 *
 * It subscribes to TOPIC with QoS 2 and prints COUNT payloads, one a line; with 0 it
 * subscribes and leaves. It fails when nothing comes for 30 seconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <MQTTClient.h>

enum { SILENCE_MS = 30000, STEP_MS = 30000 };

static void check(const char *what, int rc)
{
	if (rc != MQTTCLIENT_SUCCESS) {
		fprintf(stderr, "%s: %d\n", what, rc);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	MQTTClient client;
	MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer;
	MQTTClient_SSLOptions tls = MQTTClient_SSLOptions_initializer;
	int count, n;

	if (argc != 8) {
		fprintf(stderr, "usage: kept URI ROOTS CERTIFICATE KEY CLIENT TOPIC COUNT\n");
		return 2;
	}
	count = atoi(argv[7]);
	check("create", MQTTClient_create(&client, argv[1], argv[5], MQTTCLIENT_PERSISTENCE_NONE, NULL));
	tls.trustStore = argv[2];
	tls.keyStore = argv[3];
	tls.privateKey = argv[4];
	tls.verify = 1;
	options.ssl = &tls;
	options.cleansession = 0;
	options.keepAliveInterval = 60;
	check("connect", MQTTClient_connect(client, &options));
	if (count == 0)
		check("subscribe", MQTTClient_subscribe(client, argv[6], 2));
	for (n = 0; n < count; n++) {
		MQTTClient_message *message = NULL;
		char *topic = NULL;
		int length;

		check("receive", MQTTClient_receive(client, &topic, &length, &message, SILENCE_MS));
		if (message == NULL) {
			fprintf(stderr, "nothing came\n");
			return 1;
		}
		printf("%.*s\n", message->payloadlen, (char *)message->payload);
		MQTTClient_freeMessage(&message);
		MQTTClient_free(topic);
	}
	MQTTClient_disconnect(client, STEP_MS);
	MQTTClient_destroy(&client);
	return 0;
}
