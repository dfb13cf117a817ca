"""Common English words for text pictures."""

_WORDS = """
able about above act add after again age air all also always and animal answer any apple are
area arm art ask away baby back bad bag ball bank base bath bear beat bed been before begin
bell best better big bird black blue board boat body bone book born both bottle bottom box
boy branch bread break bridge bright bring brother brown build burn bus busy but button buy
cake call calm came camp can car card care carry case cat catch cause centre chair chance
change chart cheap check chess child city class clean clear clock close cloth cloud coat coffee
cold colour come cook cool copper copy corn cost count country course cover cow cross crowd cry
cup cut dance danger dark date day deep desk dinner dish doctor dog door down draw dream dress
drink drive drop dry duck dust each ear early earth east easy eat edge egg eight empty end
engine enough even every exit eye face fact fall family far farm fast father feel few field
fight fill film find fine finger fire first fish five flag flat floor flower fly fold food foot
forest fork form found four free fresh friend from front fruit full game garden gate gift girl
give glad glass goat gold good grand grass great green grey ground group grow guess half hand
happy hard hat head hear heart heavy help here high hill hold hole home hope horse hot hotel
hour house how ice idea inch into iron island jam job join juice jump just keep key kind king
kitchen knife know lake lamp land large last late laugh law lead leaf learn left leg lemon less
letter level life light like line lion list little live long look lost lot love low lunch
machine main make man many map mark market meal mean meat meet middle milk mind mine minute
mirror money month moon more morning mother mountain mouse mouth move much music must name near
neck need nest new news next nice night nine noise north nose note now number ocean off office
often oil old once one only open orange order other out over page paint pair paper park part
party past pay pen people pepper phone piano picture piece pig pink place plan plane plant plate
play please pocket point pool poor post pot potato power press price print public pull push
queen quick quiet radio rain reach read ready red rest rice rich ride right ring rise river
road rock roof room root rose round rule run safe sail salt same sand save school science sea
seat second see seed sell send seven shade shape sheep ship shirt shoe shop short show side
sign silver sing sister six size skin sky sleep slow small smell smile snow soap sock soft some
song soon sound soup south space speak spoon sport spring square stamp stand star start station
stay step stick stone stop store storm story street strong sugar summer sun sure sweet swim
table take talk tall taste taxi tea teach team tell ten test thank then thin thing think three
ticket tiger time tired today together top touch town toy train travel tree trip true turn two
under until use valley very view village visit voice wait walk wall want war warm wash watch
water wave way weather week west wheel when where white why wide wild wind window winter wish
with woman wonder wood word work world write wrong yard year yellow yes yet you young zebra zero
"""
COMMON_WORDS: tuple[str, ...] = tuple(_WORDS.split())
