package detect

import (
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
)

// identityRules are about somebody else who is a device, or may be.
func identityRules() []Rule {
	return []Rule{
		{
			Name: SharedCertificate, Title: "One certificate, two holders at once", Severity: countersign.SeverityCritical,
			Window: overlapFor, Threshold: 2, Again: time.Hour, Default: toAlert(),
			Sees: "Two parties use the same certificate, or the same secret, from two addresses of one family. A party is an address with a TLS fingerprint. " +
				"Either a session is still open " + span(overlapFor) + " after another party has connected; or sessions that their own clients ended had gone on beside another party's for " + span(overlapFor) +
				" in sum within " + span(partyWindow) + "; or two parties, each with its own fingerprint, take turns " + strconv.Itoa(minReturns) + " times within " + span(partyWindow) + ", which is of severity high. " +
				"The length and the number of the sessions do not matter, nor does it which party was there first. A session that is taken over by the same client id is over. " +
				"The socket that a device leaves behind when it changes networks does not count: TCP finds it dead in three minutes, and its client does not end it.",
			Why: "A key that is in two places has left the device. Whoever has the copy can do all that the device may.",
			Do:  "Suspend the device; both holders lose their sessions. Find out which of the two addresses is the device's. Revoke, and enroll the device anew with a new key.",
			FalsePositives: "A device with two programs behind two uplinks that are used side by side (multi-WAN, a VPN for one program) has two addresses for good. " +
				"Give each program an identity of its own, or set the fleet's response to note. " +
				"So has a device for a while that takes a new client id each time, has a keep alive of more than " + span(overlapFor) + ", and changes networks while a message to it is under way. " +
				"Two holders behind one address, one on IPv4 and one on IPv6, or two with one fingerprint that are never there at the same time, are not seen by this rule; see " + IdentityChange + " and " + ClientIDConflict + ". " +
				"The audit reports what this rule found, by the same judgment.",
		},
		{
			Name: ClientIDConflict, Title: "Two clients fight for one client id", Severity: countersign.SeverityHigh,
			Window: 10 * time.Minute, Threshold: 3, Again: time.Hour, Default: toAlert(),
			Sees: "A session is taken over by another party that was itself thrown out before: A, B, A, B, A. Parties are told apart by address and TLS fingerprint. Each return counts.",
			Why:  "Either two devices run with one identity, a cloned disk image for example, or somebody uses a stolen one. Neither gets its work done.",
			Do:   "Look at the two addresses and fingerprints in the evidence. If one is strange: suspend. If both are yours: enroll each device for itself.",
			FalsePositives: "A device that swings between two networks every minute or two, wireless and mobile, looks the same as long as its old sockets have not died. " +
				"Two clients behind one address with the same software are not told apart and not seen.",
		},
		{
			Name: IdentityChange, Title: "A device comes as another client from another network", Severity: countersign.SeverityMedium,
			Window: memory, Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees: "A device that is known from three sessions or more shows, in one session, a client that it never showed (TLS fingerprint, software or protocol) and a network that it never came from " +
				"(IPv4 /16, IPv6 /32; another address family is another network), by a way that no device has gone for a day or longer. The last four clients and eight networks of a device are known, for a week. " +
				"A client that three other devices of the fleet show is nothing special. A renewed certificate inherits what is known, a new first one begins anew.",
			Why: "A firmware update changes the client, a new router changes the network. Both at the same moment is what a stolen key looks like on the thief's computer.",
			Do:  "Ask whoever runs the device whether it was updated and moved. If not: suspend, then revoke and enroll anew.",
			FalsePositives: "One of the first devices of a firmware rollout that gets a new address by its reboot, as on mobile networks; or a device that was repaired and sent elsewhere. " +
				"A change of the client alone, or of the network alone, is never a finding.",
		},
		{
			Name: NewAddressCrowd, Title: "Devices from many networks gather at a new address", Severity: countersign.SeverityHigh,
			Window: time.Hour, Threshold: 10, Again: 24 * time.Hour, Default: toAlert(),
			Sees: "Devices that came before from as many different networks (IPv4 /16, IPv6 /32) as the threshold says connect from one address (IPv6: one /64) within the window after it was first seen, by ways (from network to network) that no device has gone in the last week. Nothing is called new before " + span(learning) + " of the log have been seen.",
			Why:  "Identities that were copied out of a backup, a build server or a factory database are tried out from one place.",
			Do:   "Find out whose address it is. If nobody knows: block it, suspend the devices in the evidence, look for what they have in common.",
			FalsePositives: "A site that got another address is silent: its devices come from one network. So is a carrier that moves phones among its networks. Devices that are put behind a new proxy, VPN or load balancer are not; " +
				"let it pass the addresses through.",
		},
		{
			Name: UnusualEnrollment, Title: "Enrollment at an unusual place or time", Severity: countersign.SeverityMedium,
			Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "A first certificate is given to a device outside of the networks or hours that the fleet's rules call usual. Fleets that name none are not watched. It is told about the fleet, again at ten and at a hundred times as many within a day.",
			Why:            "Who has stolen a claim or a token uses it where and when nobody looks.",
			Do:             "Compare the device with what was shipped or produced. If it is not yours: revoke the device, stop the credential in the evidence.",
			FalsePositives: "A night shift, a new plant, a repair at a customer's. Widen the fleet's usual hours or networks.",
		},
	}
}

// doorRules are about what is refused.
func doorRules() []Rule {
	return []Rule{
		{
			Name: ConnectAfterRevocation, Title: "A revoked identity is used", Severity: countersign.SeverityMedium,
			Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "A certificate that was revoked, superseded past its overlap, or whose device is retired is shown at any door. The evidence says how long ago that was. A device that tries again is one finding a day.",
			Why:            "After a theft it tells you that the thief still tries, and from where. After an overlap it tells of a device that fell back to an old state, or of a copy of it.",
			Do:             "Compare the address with the device's last one. Nothing gets in; block the address if it floods.",
			FalsePositives: "An honest device that you revoked and that nobody switched off. Close the alert; it comes again tomorrow as long as the device runs.",
		},
		{
			Name: ConnectAfterSuspension, Title: "A suspended device tries to connect", Severity: countersign.SeverityLow,
			Threshold: 1, Again: 24 * time.Hour, Default: toNote(),
			Sees:           "A device that is suspended, or whose certificate is on hold, is refused.",
			Why:            "It is alive, and where it is helps to decide whether to let it back.",
			Do:             "Finish the inquiry: countersign device reactivate, or revoke.",
			FalsePositives: "Every suspended device tries to come back. This is a note and not an alert for that reason.",
		},
		{
			Name: ConnectAfterExpiry, Title: "A device comes with an expired certificate", Severity: countersign.SeverityLow,
			Threshold: 1, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "A certificate past its end is shown at any door. The evidence says since when.",
			Why:            "The device was away too long, or its renewal does not work. It will not help itself.",
			Do:             "Allow recovery in the fleet's rules, or enroll it anew. If many come at once, look at the renewal and at the server's own clock.",
			FalsePositives: "A device back from storage. It needs help all the same.",
		},
		{
			Name: UnknownIssuer, Title: "Certificates that were not issued here", Severity: countersign.SeverityLow,
			Window: time.Hour, Threshold: 3, Again: 24 * time.Hour, Default: toNote(),
			Sees:           "Connections from one address with certificates of which nothing is on record. What they claim is in the evidence.",
			Why:            "A forged issuer with the right name, a device of another installation, or a scan of the Internet.",
			Do:             "If the names are yours, find out which authority signed: it may have to be registered, or a device was set up for another server. If not, block the address.",
			FalsePositives: "A test device with a certificate from another environment.",
		},
	}
}

// secretRules are about secrets that are tried, and what else a client may not do.
func secretRules() []Rule {
	return []Rule{
		{
			Name: WrongSecret, Title: "A wrong secret for a known device", Severity: countersign.SeverityLow,
			Window: time.Hour, Threshold: 5, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "A connection in the name of a device that exists is refused because its secret is wrong. The first is a finding of severity low; as many as the threshold within the window are one of severity high. The device itself is never locked out by it.",
			Why:            "Somebody who knows the names of your devices guesses, or a device lost its secret.",
			Do:             "Compare the address with that of the device. If it is the device: give it a new secret. If not: the address will be blocked by itself; certificates cannot be guessed, move the device to them.",
			FalsePositives: "A technician who mistypes. A device that was given a new secret and still has the old one in one of its programs.",
		},
		{
			Name: SecretSpraying, Title: "One secret is tried on many devices", Severity: countersign.SeverityHigh,
			Window: 24 * time.Hour, Threshold: 5, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "The same wrong secret is shown in the names of different devices, from any addresses. The log holds a keyed hash that tells wrong secrets apart and nothing else of them.",
			Why:            "Trying one likely secret on all devices stays below every limit for one device and one address.",
			Do:             "Look for devices that were given a secret by hand and have a weak one. Rotate those; prefer secrets that the server makes.",
			FalsePositives: "A firmware image that was built with a sample secret, on many devices that exist.",
		},
		{
			Name: DeviceProbing, Title: "Many devices' names are tried from one address", Severity: countersign.SeverityHigh,
			Window: time.Hour, Threshold: 5, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "Wrong secrets are shown in the names of different devices, existing or not, from one address (IPv6: one /64).",
			Why:            "Somebody looks for the one device whose secret is weak. The address may stay below the rate that blocks it.",
			Do:             "Block the address if it is not yours.",
			FalsePositives: "A site whose devices all lost their secrets at once, after a restore of an old backup for example.",
		},
		{
			Name: DeniedTopics, Title: "A device keeps trying what it may not", Severity: countersign.SeverityMedium,
			Window: 5 * time.Minute, Threshold: 20, Again: 24 * time.Hour, Default: toAlert(),
			Sees:           "Publications or subscriptions outside of its permissions are refused, of which a session tells at most one a second.",
			Why:            "Malware on a device, or a stolen identity, looks around before it does anything else.",
			Do:             "Look at the topics. If they are other devices' topics: suspend. If the device needs them: change the policy (countersign policy explain shows which line refuses).",
			FalsePositives: "New firmware that publishes to a topic which the policy does not have yet. The whole fleet then is one finding of the fleet.",
		},
		{
			Name: ClockSkew, Title: "A device's clock seems wrong", Severity: countersign.SeverityInfo,
			Window: 24 * time.Hour, Threshold: 3, Again: 7 * 24 * time.Hour, Default: toNote(),
			Sees:           "A certificate that is not yet valid is shown again and again, or a signed token (SAS) that had expired when it came.",
			Why:            "It is no attack. A device that lost the time cannot check the server's certificate either, and will fail in other ways.",
			Do:             "See that it gets the time (NTP, or a battery for its clock). If many devices show it at once, look at the server's own clock first.",
			FalsePositives: "A client that keeps an expired token and shows it again instead of signing a new one.",
		},
	}
}

// recordedRules are what was found in the transaction that it happened in. Each
// such event is a finding.
func recordedRules() []Rule {
	return []Rule{
		{
			Name: RenewalFork, Title: "Two holders of one identity renew", Severity: countersign.SeverityCritical, Threshold: 1, Default: toAlert(),
			Sees:           "A certificate is renewed with another key after its successor has been used, or one is shown that its device had given up. The device is suspended in the same moment; its newest certificate in use is held, the others are revoked.",
			Why:            "Only a copy of the key can do that. A device that lost power or an answer at any moment is told apart.",
			Do:             "Find the device. Revoke it and enroll it anew; find out how the key got out. Reactivate it only if you know that the device has the certificate that comes back.",
			FalsePositives: "A device that was set back to an old image of its disk, with the old key in it, is a second holder too.",
		},
		{
			Name: ClaimMisuse, Title: "A claim was used outside of its bounds", Severity: countersign.SeverityHigh, Threshold: 1, Default: toAlert(),
			Sees:           "A claim certificate is used from another network, at another time or more often than was allowed. It is stopped.",
			Why:            "A claim is on many devices, so it gets out some day. Its bounds are the protection.",
			Do:             "See which devices enrolled with it (countersign log list), then make a new claim for those to come.",
			FalsePositives: "A production run that was longer, or elsewhere, than planned.",
		},
		{
			Name: GroupKeyLeaked, Title: "A group key is out", Severity: countersign.SeverityCritical, Threshold: 1, Default: toAlert(),
			Sees:           "A device signs with the group key itself instead of a key derived from it.",
			Why:            "Whoever has the group key can be any device of the group.",
			Do:             "Stop the group's credential, make a new one, enroll the devices anew.",
			FalsePositives: "A developer who put the group key into a device by mistake. It is out all the same.",
		},
		{
			Name: KeyReused, Title: "One key for two devices", Severity: countersign.SeverityHigh, Threshold: 1, Default: toAlert(),
			Sees:           "A public key that serves one device is shown by another, which is refused.",
			Why:            "Two devices with one key are one identity: a cloned image, or keys made with bad random numbers.",
			Do:             "Have keys made on the device at its first start, after the image was written.",
			FalsePositives: "A device that was given a new name and kept its key. Let it make a new one.",
		},
		{
			Name: SharedFactor, Title: "Two RSA keys share a prime", Severity: countersign.SeverityCritical, Threshold: 1, Default: toAlert(),
			Sees:           "Two RSA keys of devices have a common factor. Each key that a node certifies or introduces is compared within seconds with the RSA keys that the node knows, at most 50,000: a minute after its start and then every hour it adds those of the 50,000 certificates that end last, which are other nodes' too.",
			Why:            "Anyone can compute both private keys from the two certificates.",
			Do:             "Revoke both. Look at where the devices got their random numbers when they made their keys; all of that series are suspect.",
			FalsePositives: "None: it is arithmetic.",
		},
		{
			Name: SecretGuessing, Title: "Many wrong secrets", Severity: countersign.SeverityMedium, Threshold: 1, Default: toAlert(),
			Sees:           "The ledger of failures counted ten, a hundred or a thousand wrong secrets within an hour in one device's name or for one credential. See [lockout](lockout.md).",
			Why:            "Somebody guesses. Addresses that do are blocked, from many addresses it takes longer to see.",
			Do:             "Nothing is locked out. If the secret was chosen by a person, replace it by one that the server makes.",
			FalsePositives: "A device with an old secret that tries without pause.",
		},
		{
			Name: AddressBlocked, Title: "An address was blocked", Severity: countersign.SeverityMedium, Threshold: 1, Default: toAlert(),
			Sees:           "An address failed too often and was blocked by the server. Blocks by operators are no findings. See [lockout](lockout.md).",
			Why:            "Somebody guesses, or a device is set up wrongly.",
			Do:             "Nothing has to be done: the block ends by itself. If the address is one of your sites: countersign block remove, and mend the device.",
			FalsePositives: "A site behind one address with a misconfigured device. Devices with certificates pass the block.",
		},
		{
			Name: EventsLost, Title: "Events could not be written", Severity: countersign.SeverityMedium, Threshold: 1, Default: toAlert(),
			Sees:           "More happened at the gateways than the disk could take, and events were left out. The evidence says how many.",
			Why:            "Detectors see what is written. A flood may be meant to hide something.",
			Do:             "See where the flood came from (refused connections before it), and give the database a faster disk.",
			FalsePositives: "A disk that was slow for a while.",
		},
	}
}
